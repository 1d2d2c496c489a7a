"""From a prompt and its parameters to sequences: names, seeds, lengths."""

from __future__ import annotations

from typing import Any

import pytest

from paged_engine import SamplingParams
from paged_engine.errors import InvalidRequestError
from paged_engine.intake import one_each
from tests.engine.engine_helpers import oracle_engine


def prepare(engine: Any, *args: Any) -> Any:
    return engine._intake.prepare(*args)


def test_preparing_puts_nothing_in_line() -> None:
    engine = oracle_engine()
    before = engine.snapshot()
    prepare(engine, [1, 2], SamplingParams(n=3, max_tokens=4))
    assert engine.snapshot() == before
    assert not engine.has_unfinished


def test_samples_are_forks_of_the_first_with_names_of_their_own() -> None:
    user = prepare(oracle_engine(), [1, 2], SamplingParams(n=3, max_tokens=4), "a")
    requests = [s.request for s in user.samples]
    assert user.request_id == "a"
    assert [r.request_id for r in requests] == ["a#0", "a#1", "a#2"]
    assert [r.sample_index for r in requests] == [0, 1, 2]
    assert [r.fork_of for r in requests] == [None, requests[0], requests[0]]
    assert len({r.seed for r in requests}) == 1


def test_seeds_come_from_the_configuration_unless_given() -> None:
    def seeds(**options: Any) -> list[int]:
        engine = oracle_engine(**options)
        return [prepare(engine, [1]).samples[0].request.seed for _ in range(3)]

    assert seeds(seed=1) == seeds(seed=1)
    assert seeds(seed=1) != seeds(seed=2)
    assert len(set(seeds(seed=1))) == 3
    assert seeds(seed=None) != seeds(seed=None)
    given = prepare(oracle_engine(), [1], SamplingParams(seed=7, max_tokens=1))
    assert given.samples[0].request.seed == 7


def test_a_request_that_brings_a_seed_does_not_shift_those_of_others() -> None:
    one, other = oracle_engine(), oracle_engine()
    prepare(one, [1], SamplingParams(seed=7, max_tokens=1))
    assert prepare(one, [1]).samples[0].request.seed == prepare(other, [1]).samples[0].request.seed


@pytest.mark.parametrize(("max_tokens", "given"), [(5, 5), (None, 127)])
def test_without_max_tokens_it_may_fill_the_pool(max_tokens: int | None, given: int) -> None:
    user = prepare(oracle_engine(), [1, 2], SamplingParams(max_tokens=max_tokens))
    assert user.samples[0].request.max_tokens == given


def test_the_limit_follows_the_pool() -> None:
    engine = oracle_engine()
    engine.resize_pool(2)
    with pytest.raises(InvalidRequestError, match=r"can serve \(9\)"):
        prepare(engine, [1, 2], SamplingParams(max_tokens=8))
    engine.resize_pool(3)
    prepare(engine, [1, 2], SamplingParams(max_tokens=8))


def test_one_parameter_for_all_or_one_for_each() -> None:
    one, two = SamplingParams(), SamplingParams(max_tokens=1)
    assert one_each(None, 2) == [None, None]
    assert one_each(one, 2) == [one, one]
    assert one_each((one, two), 2) == [one, two]
    assert one_each([], 0) == []


@pytest.mark.parametrize("params", [[SamplingParams()], "ab ", 5, {1: 2}, iter([])])
def test_another_number_of_parameters_is_refused(params: Any) -> None:
    with pytest.raises(InvalidRequestError, match="for 2 prompts; expected one SamplingParams, or"):
        one_each(params, 2)
