"""What the workloads hold: lengths in their ranges, the same from the same seed."""

from __future__ import annotations

from statistics import fmean, median

import pytest

from paged_engine.benchmark.workloads import (
    WORKLOADS,
    Job,
    a_little_of,
    check_fits,
    make_jobs,
    shortened,
)
from paged_engine.errors import InvalidConfigError


def lengths(jobs: list[Job]) -> tuple[list[int], list[int]]:
    return [len(job.prompt_token_ids) for job in jobs], [job.num_output_tokens for job in jobs]


@pytest.mark.parametrize(
    ("name", "number", "prompts", "outputs"),
    [
        ("standard", 32, (16, 256), (16, 128)),
        ("uniform", 32, (32, 512), (32, 256)),
        ("nano-vllm", 256, (100, 1024), (100, 1024)),
        ("chat", 32, (4, 1024), (4, 1024)),
        ("shared-prefix", 32, (136, 192), (16, 64)),
        ("long-prompt", 16, (16, 1024), (32, 64)),
    ],
)
def test_numbers_and_lengths(
    name: str, number: int, prompts: tuple[int, int], outputs: tuple[int, int]
) -> None:
    assert len(make_jobs(name, 100)) == number
    many = make_jobs(name, 100, num_requests=1000)
    assert len(many) == 1000
    for drawn, (low, high) in zip(lengths(many), (prompts, outputs), strict=True):
        assert low <= min(drawn) and max(drawn) <= high
        if name in (
            "standard",
            "uniform",
            "nano-vllm",
        ):  # evenly
            assert max(drawn) - min(drawn) > 0.95 * (high - low)
            assert fmean(drawn) == pytest.approx((low + high) / 2, rel=0.05)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_decides_all(name: str) -> None:
    """And gives the same lengths, whatever the vocabulary."""
    assert make_jobs(name, 100, seed=1) == make_jobs(name, 100, seed=1)
    one, other = make_jobs(name, 100, seed=1), make_jobs(name, 100, seed=2)
    assert one != other
    assert one[0].prompt_token_ids != other[0].prompt_token_ids
    assert lengths(make_jobs(name, 7, seed=1)) == lengths(one)


@pytest.mark.parametrize("name", WORKLOADS)
def test_tokens_are_of_the_vocabulary(name: str) -> None:
    tokens = {token for job in make_jobs(name, 7) for token in job.prompt_token_ids}
    assert tokens == set(range(7))


def test_chats_are_mostly_short_and_sometimes_long() -> None:
    prompts, outputs = lengths(make_jobs("chat", 10, num_requests=4000))
    assert fmean(prompts) == pytest.approx(161, rel=0.15)  # cut off at 1024, so a little lower
    assert fmean(outputs) == pytest.approx(338, rel=0.15)
    assert median(prompts) < 0.7 * fmean(prompts)
    assert max(prompts) == 1024


def test_prefixes_are_shared_and_questions_are_not() -> None:
    jobs = make_jobs("shared-prefix", 10_000)
    assert len({job.prompt_token_ids[:128] for job in jobs}) == 4
    assert all(
        job.prompt_token_ids[:128] == jobs[i % 4].prompt_token_ids[:128]
        for i, job in enumerate(jobs)
    )
    assert len({job.prompt_token_ids[128:136] for job in jobs}) == len(jobs)


def test_one_prompt_is_long_and_comes_in_the_middle() -> None:
    prompts, _ = lengths(make_jobs("long-prompt", 100))
    assert prompts[7] == 1024
    assert max(prompts[:7] + prompts[8:]) <= 64
    assert lengths(make_jobs("long-prompt", 100, num_requests=1))[0] == [1024]


def test_uniform_takes_the_lengths_that_were_asked_for() -> None:
    jobs = make_jobs("uniform", 10, prompt_lengths=(3, 3), output_lengths=(1, 2))
    prompts, outputs = lengths(jobs)
    assert set(prompts) == {3} and set(outputs) == {1, 2}


def test_jobs_run_to_their_full_length() -> None:
    params = Job((1, 2), 5).params
    assert (params.max_tokens, params.ignore_eos, params.is_greedy) == (5, True, True)


@pytest.mark.parametrize(
    ("prompt", "output", "limit", "expected"),
    [
        (6, 4, 10, (6, 4)),
        (6, 4, 5, (3, 2)),
        (1, 99, 4, (1, 3)),
        (99, 1, 4, (3, 1)),
        (9, 9, 2, (1, 1)),
    ],
)
def test_what_is_too_long_is_shortened_in_proportion(
    prompt: int, output: int, limit: int, expected: tuple[int, int]
) -> None:
    job = shortened(Job(tuple(range(prompt)), output), limit)
    assert (len(job.prompt_token_ids), job.num_output_tokens) == expected
    assert job.prompt_token_ids == tuple(range(expected[0]))


def test_nano_vllms_workload_can_be_made_to_fit() -> None:
    whole = make_jobs("nano-vllm", 10)
    with pytest.raises(InvalidConfigError, match="at most 512.*--max-tokens 512"):
        check_fits(whole, 512)
    fitting = make_jobs("nano-vllm", 10, max_tokens=512)
    check_fits(fitting, 512)
    assert max(job.num_tokens for job in fitting) == 512
    short = [i for i, job in enumerate(whole) if job.num_tokens <= 512]
    assert short and all(fitting[i] == whole[i] for i in short)


def test_the_longest_that_fits_fits() -> None:
    check_fits([Job((1, 2), 3)], 5)
    with pytest.raises(InvalidConfigError):
        check_fits([Job((1,), 1), Job((1, 2), 4)], 5)


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(InvalidConfigError, match="'chess'; expected one of standard"):
        make_jobs("chess", 10)


def test_warming_up_takes_little() -> None:
    few = a_little_of([Job((1, 2), 100), Job((3,), 4), Job((5,), 6)])
    assert few == [Job((1, 2), 8), Job((3,), 4)]
