"""Sampling against the plainest possible reference: one row at a time, in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine import sampler
from paged_engine.request import Request, SamplingParams
from paged_engine.sampler import NUM_CANDIDATES, Sampled, keyed_uniform, sample, usable_rows

Row = list[float] | np.ndarray[Any, Any] | torch.Tensor


def request_of(
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    seed: int = 0,
    index: int = 0,
    eos: tuple[int, ...] = (),
    **params: Any,
) -> Request:
    request = Request(
        "a",
        [0] if prompt is None else prompt,
        SamplingParams(**params),
        seed=seed,
        sample_index=index,
        eos_token_ids=frozenset(eos),
    )
    request.token_ids += output or []
    return request


def one(logits: Row, request: Request) -> Sampled:
    return sample(torch.as_tensor(logits, dtype=torch.float32)[None], [request])[0]


def token(logits: Row, **options: Any) -> int:
    return one(logits, request_of(**options)).token_id


def at(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every draw this one."""
    monkeypatch.setattr(sampler, "keyed_uniform", lambda *key: uniform)


def reference_weights(logits: np.ndarray[Any, Any], params: SamplingParams) -> np.ndarray[Any, Any]:
    """Probabilities after temperature and filters, by definition."""
    scaled = logits.astype(np.float64) / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = list(order[: params.top_k or len(p)])
    total, mass, nucleus = p[kept].sum(), 0.0, []
    for i in kept:
        if nucleus and mass >= params.top_p * total:
            break
        nucleus.append(i)
        mass += p[i]
    nucleus = [i for i in nucleus if p[i] >= params.min_p * p.max()]
    weights = np.zeros_like(p)
    weights[nucleus] = p[nucleus]
    return weights / weights.sum()


def support(
    logits: Row, monkeypatch: pytest.MonkeyPatch, number: int = 400, **params: Any
) -> set[int]:
    """All tokens that some draw leads to."""
    found = set()
    for i in range(number):
        at(i / number, monkeypatch)
        found.add(token(logits, **{"temperature": 1.0, **params}))
    return found


PROBABILITIES = [0.05, 0.4, 0.1, 0.3, 0.15]
LOGITS = [math.log(p) for p in PROBABILITIES]  # by rank: 1, 3, 4, 2, 0


# Greedy ----------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_most_likely_token() -> None:
    assert token(LOGITS) == 1
    assert token(LOGITS, top_k=3, top_p=0.5, seed=5) == 1


def test_a_tie_goes_to_the_lower_id() -> None:
    assert token([0.0, 3.0, 3.0]) == 1


def test_a_very_low_temperature_is_as_good_as_greedy() -> None:
    for temperature in (1e-30, 1e-5, 1e-3):
        assert {token(LOGITS, temperature=temperature, seed=s) for s in range(50)} == {1}


def test_logits_are_not_changed() -> None:
    logits = torch.tensor([LOGITS])
    before = logits.clone()
    sample(logits, [request_of(output=[1], repetition_penalty=2.0, temperature=1.0, logprobs=2)])
    assert torch.equal(logits, before)


# Filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),  # the token that crosses p stays
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"min_p": 0.3}, {1, 3, 4}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 2, "top_p": 0.6}, {1, 3}),  # 0.4 of 0.7 is not yet 0.6
        ({"top_k": 2, "top_p": 0.55}, {1}),  # 0.4 of 0.7 is more than 0.55
        ({"top_p": 0.9, "min_p": 0.5}, {1, 3}),
    ],
)
def test_filters_keep_exactly_these(
    params: dict[str, Any], expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert support(LOGITS, monkeypatch, **params) == expected


finite = st.floats(-8, 8, width=32)


@given(
    logits=st.lists(finite, min_size=1, max_size=12, unique=True),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 13),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.1, 0.7]),
    uniform=st.floats(0, 1, exclude_max=True),
    candidates=st.sampled_from([1, 2, 5, 1024]),
)
def test_a_draw_equals_the_reference(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    candidates: int,
) -> None:
    """By inverting the distribution, in descending order where there is a filter."""
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    array = np.array(logits, dtype=np.float32)
    weights = reference_weights(array, SamplingParams(**params))  # type: ignore[arg-type]
    filtered = top_k > 0 or top_p < 1 or min_p > 0
    order = np.argsort(-array, kind="stable") if filtered else np.arange(len(array))
    cumulative = np.cumsum(weights[order])
    with pytest.MonkeyPatch.context() as patch:
        at(uniform, patch)
        patch.setattr(sampler, "NUM_CANDIDATES", candidates)
        chosen = token(array, **params)
    place = int(np.flatnonzero(order == chosen)[0])
    low, high = (cumulative[place - 1] if place else 0.0), cumulative[place]
    near = min(abs(p - top_p * cumulative[-1]) for p in [*np.cumsum(weights), top_p + 1])
    if near > 1e-6:
        assert low - 1e-5 <= uniform <= high + 1e-5


def test_a_flat_distribution_reaches_beyond_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * NUM_CANDIDATES
    at(0.9995, monkeypatch)
    flat = torch.linspace(1e-3, 0.0, size)  # falls a little, so that ranks are ids
    chosen = token(flat, temperature=1.0, top_p=0.999)
    weights = reference_weights(flat.numpy(), SamplingParams(temperature=1.0, top_p=0.999))
    expected = int(np.searchsorted(np.cumsum(weights), 0.9995))
    assert chosen > NUM_CANDIDATES and abs(chosen - expected) <= 1


def test_a_top_k_beyond_the_candidates_is_the_total_of_top_p(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, top_k = 4 * NUM_CANDIDATES, 2 * NUM_CANDIDATES
    at(0.999, monkeypatch)
    flat = torch.linspace(1e-3, 0.0, size)
    chosen = token(flat, temperature=1.0, top_k=top_k, top_p=0.9)
    assert abs(chosen - 0.9 * top_k) < 0.01 * top_k


def test_a_draw_does_not_depend_on_how_far_the_filters_of_neighbours_reach() -> None:
    flat = torch.linspace(1.0, 0.0, 2 * NUM_CANDIDATES)
    narrow = request_of(temperature=1.0, top_p=0.3, seed=3)
    wide = request_of(temperature=1.0, top_p=0.999, seed=4)
    both = sample(torch.stack([flat, flat]), [narrow, wide])
    assert both == [one(flat, narrow), one(flat, wide)]


# Penalties and forbidden tokens ----------------------------------------------------------------


@given(
    logits=st.lists(finite, min_size=6, max_size=6),
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    output=st.lists(st.integers(0, 5), max_size=5),
    repetition=st.sampled_from([0.5, 1.0, 1.3, 4.0]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.5, 0.0, 0.3]),
)
def test_penalties_equal_the_reference(
    logits: list[float],
    prompt: list[int],
    output: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    expected = np.array(logits, dtype=np.float64)
    for t in set(prompt + output):
        expected[t] = expected[t] / repetition if expected[t] > 0 else expected[t] * repetition
    for t in set(output):
        expected[t] -= presence + frequency * output.count(t)
    request = request_of(
        prompt,
        output,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    adjusted = sampler._adjust(torch.tensor([logits]), [request])[0]
    assert np.allclose(adjusted.numpy(), expected, atol=1e-5)


def test_penalties_of_one_do_not_touch_its_neighbours() -> None:
    logits = torch.tensor([[2.0, 1.9], [2.0, 1.9]])
    penalised = request_of([0], repetition_penalty=2.0)
    assert [s.token_id for s in sample(logits, [penalised, request_of([0])])] == [1, 0]


def test_no_stop_token_before_min_tokens() -> None:
    logits = [0.0, 5.0, 4.0, 3.0]
    options: dict[str, Any] = {"eos": (1,), "stop_token_ids": [2], "min_tokens": 2}
    assert token(logits, **options) == 3
    assert token(logits, output=[0], **options) == 3
    assert token(logits, output=[0, 0], **options) == 1
    assert token(logits, **{**options, "ignore_eos": True}) == 1


def test_a_stop_token_outside_the_vocabulary_is_no_harm() -> None:
    assert token([1.0, 2.0], stop_token_ids=[7], min_tokens=1) == 1


def test_a_forbidden_token_is_not_drawn_either() -> None:
    options: dict[str, Any] = {"eos": (1,), "min_tokens": 1, "temperature": 1.0}
    assert 1 not in {token(LOGITS, seed=s, **options) for s in range(100)}


# Draws -----------------------------------------------------------------------------------------


def test_a_key_gives_the_same_number_every_time() -> None:
    assert keyed_uniform(1, 2, 3, 0) == keyed_uniform(1, 2, 3, 0)
    assert 0.0 <= keyed_uniform(-1, 0, 0, 0) < 1.0
    assert keyed_uniform(2**64 + 5, 0, 0, 0) == keyed_uniform(5, 0, 0, 0)


def test_every_part_of_the_key_counts() -> None:
    keys = [(s, i, p, t) for s in range(6) for i in range(6) for p in range(6) for t in range(3)]
    assert len({keyed_uniform(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("part", range(4))
def test_numbers_along_each_part_of_the_key_are_uniform_and_unrelated(part: int) -> None:
    numbers = []
    for i in range(4000):
        key = [7, 1, 2, 0]
        key[part] = i
        numbers.append(keyed_uniform(*key))
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 45  # chi-square, 19 degrees: p = 0.0007
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06


CHI_SQUARE = 23.5  # 4 degrees of freedom: p = 0.0001


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.3, "temperature": 0.7},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    params = {"temperature": 1.0, **params}
    number = 4000
    requests = [request_of(seed=seed, **params) for seed in range(number)]
    logits = torch.tensor([LOGITS]).expand(number, -1)
    counts = np.bincount([s.token_id for s in sample(logits, requests)], minlength=5)
    weights = reference_weights(np.array(LOGITS), SamplingParams(**params)) * number
    kept = weights > 0
    assert counts[~kept].sum() == 0
    assert ((counts[kept] - weights[kept]) ** 2 / weights[kept]).sum() < CHI_SQUARE


def test_positions_and_samples_of_one_request_draw_independently() -> None:
    positions = [token(LOGITS, temperature=1.0, seed=3, output=[0] * n) for n in range(2000)]
    samples = [token(LOGITS, temperature=1.0, seed=3, index=i) for i in range(2000)]
    for drawn in (positions, samples):
        expected = np.array(PROBABILITIES) * 2000
        counts = np.bincount(drawn, minlength=5)
        assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE


def test_a_draw_depends_on_the_key_alone() -> None:
    """Not on neighbours, order, id or what the prompt was."""
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    filters: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.7},
        {},
        {"temperature": 0.5, "top_k": 5},
        {"temperature": 2.0, "output": [1, 2, 3], "frequency_penalty": 0.5},
        {"temperature": 1.0, "min_p": 0.2},
    ]
    requests = [request_of(seed=i, **params) for i, params in enumerate(filters)]
    alone = [one(row, request) for row, request in zip(rows, requests, strict=True)]
    assert sample(rows, requests) == alone
    order = [4, 0, 5, 2, 1, 3]
    assert sample(rows[order], [requests[i] for i in order]) == [alone[i] for i in order]
    again = request_of([5, 6, 7], seed=0, temperature=1.0)
    again.request_id = "another"
    assert one(rows[0], again) == alone[0]


def test_seeds_samples_and_positions_change_the_draw() -> None:
    flat = torch.zeros(10_000)
    base = token(flat, temperature=1.0)
    assert token(flat, temperature=1.0, seed=1) != base
    assert token(flat, temperature=1.0, index=1) != base
    assert token(flat, temperature=1.0, output=[1]) != base


def test_the_smallest_and_the_largest_draw_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [-math.inf, 0.0, 0.0, -math.inf]
    for uniform, expected in ((0.0, 1), (1 - 2**-53, 2)):
        at(uniform, monkeypatch)
        assert token(logits, temperature=1.0) == expected


# Log-probabilities and unusable rows -----------------------------------------------------------


def test_logprobs_are_those_of_the_model_itself() -> None:
    request = request_of(
        [1],
        [1],
        repetition_penalty=9.0,
        temperature=0.5,
        top_k=1,
        eos=(3,),
        min_tokens=9,
        logprobs=2,
    )
    chosen = one(LOGITS, request)
    assert chosen.logprob is not None and chosen.token_id == chosen.logprob.token_id
    assert chosen.logprob.logprob == pytest.approx(LOGITS[chosen.token_id], abs=1e-5)
    assert [t for t, _ in chosen.logprob.top] == [1, 3]
    assert [v for _, v in chosen.logprob.top] == pytest.approx([LOGITS[1], LOGITS[3]], abs=1e-5)


def test_logprobs_come_only_to_those_who_asked_and_as_many() -> None:
    logits = torch.tensor([LOGITS] * 4)
    asked = [None, 0, 3, 99]
    got = [s.logprob for s in sample(logits, [request_of(logprobs=n) for n in asked])]
    assert got[0] is None
    assert [len(g.top) for g in got[1:] if g is not None] == [0, 3, 5]


def test_rows_that_no_token_can_be_chosen_from_are_told() -> None:
    nan, inf = math.nan, math.inf
    rows = [[1.0, 2.0], [1.0, nan], [nan, nan], [inf, 1.0], [-inf, 1.0], [-inf, -inf]]
    assert usable_rows(torch.tensor(rows)) == [True, False, False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_will_do(dtype: torch.dtype) -> None:
    logits = torch.tensor([LOGITS], dtype=dtype)
    assert sample(logits, [request_of(logprobs=1)])[0].token_id == 1


def test_logits_may_know_their_gradient() -> None:
    """A runner of a reader's own may leave out `no_grad`."""
    logits = torch.tensor([[0.0, 3.0, 1.0]], requires_grad=True)
    assert usable_rows(logits) == [True]
    assert [chosen.token_id for chosen in sample(logits, [request_of(temperature=0.0)])] == [1]
