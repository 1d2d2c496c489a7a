"""A request may join, leave or be thrown out at any step of a running batch."""

from __future__ import annotations

import pytest

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models import TINY_FAMILIES
from tests.helpers.parity import Observed, Tally, assert_parity, prompt_of, tiny_truth

FAMILIES = [
    pytest.param(family, marks=[] if family in ("llama", "gemma2") else pytest.mark.slow)
    for family in TINY_FAMILIES
]
RUNNING = [prompt_of(length, 1) for length in (14, 30, 3)]
PARAMS = SamplingParams(max_tokens=10)


def engine_for(family: str, **options: object) -> Observed:
    values = {"block_size": 8, "num_blocks": 64, "max_num_batched_tokens": 12} | options
    config = EngineConfig.from_options(**values)
    return Observed(ContinuousEngine(tiny_truth(family).model, config=config))


def begin(observed: Observed) -> dict[str, SamplingParams]:
    for i, prompt in enumerate(RUNNING):
        observed.engine.add_request(prompt, PARAMS, request_id=f"r{i}")
    return {f"r{i}": PARAMS for i in range(len(RUNNING))}


def num_steps(family: str) -> int:
    observed = engine_for(family)
    begin(observed)
    observed.run()
    return observed.count("step_began")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_that_joins_at_any_step_changes_nobodys_tokens(family: str, tally: Tally) -> None:
    for step in range(num_steps(family)):
        observed = engine_for(family)
        asked = begin(observed)
        for _ in range(step):
            observed.step()
        observed.engine.add_request(prompt_of(21, 9), PARAMS, request_id="late")
        observed.run()
        assert_parity(observed, tiny_truth(family), asked | {"late": PARAMS}, tally)
    assert tally.num_tokens > 300


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neighbour_that_is_aborted_at_any_step_changes_nobodys_tokens(
    family: str, tally: Tally
) -> None:
    for step in range(num_steps(family) - 3):
        observed = engine_for(family)
        asked = begin(observed)
        for _ in range(step):
            observed.step()
        unfinished = [name for name in asked if name not in observed.final]
        observed.engine.abort(unfinished[step % len(unfinished)])
        observed.engine.add_request(prompt_of(21, 9), PARAMS, request_id="in its place")
        observed.run()
        assert observed.count("aborted") == 1
        assert_parity(observed, tiny_truth(family), asked | {"in its place": PARAMS}, tally)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_preempted_at_any_step_gets_the_tokens_it_would_have_got(
    family: str, tally: Tally
) -> None:
    """The pool shrinks to what one request needs, and grows again."""
    num_preempted = []
    for step in range(2, num_steps(family) - 4):
        observed = engine_for(family, enable_prefix_caching=bool(step % 2))
        asked = begin(observed)
        for _ in range(step):
            observed.step()
        observed.engine.resize_pool(5)
        observed.step()
        observed.engine.resize_pool(64)
        observed.run()
        num_preempted.append(observed.count("preempted"))
        assert_parity(observed, tiny_truth(family), asked, tally)
    # in the first and last steps the few blocks are enough
    assert sum(n > 0 for n in num_preempted) > len(num_preempted) / 2, num_preempted
