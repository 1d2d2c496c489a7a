"""A step that fails is rolled back, and trying again gives the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paged_engine import ContinuousEngine
from paged_engine.replay import EngineState
from tests.engine.engine_helpers import (
    Collected,
    assert_idle,
    check,
    expected,
    greedy,
    oracle_engine,
)
from tests.helpers.fakes import OracleModel

LONG = list(range(10, 31))


def _preemption() -> tuple[OracleModel, ContinuousEngine, dict[str, list[int]]]:
    """Three that do not fit together into 8 blocks."""
    model = OracleModel()
    engine = oracle_engine(model, num_blocks=8, max_num_batched_tokens=16)
    return model, engine, {"a": LONG[:9], "b": LONG[5:16], "c": [3, 4]}


def _forks() -> tuple[OracleModel, ContinuousEngine, dict[str, list[int]]]:
    """Samples that share a prompt which ends inside a block."""
    model = OracleModel()
    engine = oracle_engine(model, num_blocks=12, max_num_batched_tokens=9)
    return model, engine, {"a": LONG[:7], "n=3": LONG[4:18]}


def _hits() -> tuple[OracleModel, ContinuousEngine, dict[str, list[int]]]:
    """Prompts that begin alike, in a pool that must evict."""
    model = OracleModel()
    engine = oracle_engine(model, num_blocks=10, max_num_batched_tokens=12, max_num_seqs=2)
    return model, engine, {"a": LONG[:13], "b": [*LONG[:12], 2], "c": [*LONG[:8], 1, 2, 3]}


Scenario = Callable[[], tuple[OracleModel, ContinuousEngine, dict[str, list[int]]]]
NUM_TOKENS = 10


def _add(engine: ContinuousEngine, prompts: dict[str, list[int]]) -> None:
    for name, prompt in prompts.items():
        n = 3 if name == "n=3" else 1
        engine.add_request(prompt, greedy(NUM_TOKENS, n=n), request_id=name)


def _num_forwards(scenario: Scenario) -> int:
    model, engine, prompts = scenario()
    _add(engine, prompts)
    while engine.has_unfinished:
        engine.step()
    kinds = {"_preemption": "preempted", "_forks": "copied", "_hits": "hit"}
    assert engine.log.of_kind(kinds[scenario.__name__]), "the run does not show what it is to show"
    return model.num_forwards


def _requests(state: EngineState) -> dict[str, Any]:
    return {
        name: (r.status, r.num_computed_tokens, r.block_table, r.output_token_ids)
        for name, r in state.requests.items()
    }


@pytest.mark.parametrize("scenario", [_preemption, _forks, _hits])
@pytest.mark.parametrize("times", [1, 3])
def test_failing_at_any_step_changes_no_token(scenario: Scenario, times: int) -> None:
    for fail_at in range(1, _num_forwards(scenario) + 1):
        model, engine, prompts = scenario()
        model.fail_at = set(range(fail_at, fail_at + times))
        _add(engine, prompts)
        collected = Collected()
        failures = 0
        while engine.has_unfinished:
            before = engine.snapshot()
            try:
                collected.take(engine.step())
            except RuntimeError as error:
                assert str(error) == "the model failed, as planned"
                failures += 1
                _assert_rolled_back(engine, before)
            check(engine)
        assert failures == times
        assert_idle(engine)
        for name, prompt in prompts.items():
            for c in collected.final[name].completions:
                assert c.token_ids == expected(prompt, NUM_TOKENS), f"failed at {fail_at}"


def _assert_rolled_back(engine: ContinuousEngine, before: EngineState) -> None:
    """Requests and blocks are as before, but for who was preempted and what was evicted."""
    after = engine.snapshot()
    preempted = {
        e.request_id
        for e in engine.log.of_kind("preempted")  # type: ignore[attr-defined]
        if e.step == engine.core.recorder.step
    }  # type: ignore[union-attr]
    for name, was in before.requests.items():
        now = after.requests[name]
        assert now.output_token_ids == was.output_token_ids
        if name in preempted:
            assert (now.status, now.block_table, now.num_computed_tokens) == ("preempted", [], 0)
        else:
            assert now == was
    held = {i for r in after.requests.values() for i in r.block_table}
    for i, (now_block, was_block) in enumerate(zip(after.blocks, before.blocks, strict=True)):
        assert (now_block.ref_cnt > 0) == (i in held)
        assert now_block.block_hash in (was_block.block_hash, None)
    assert engine.log[-1].kind == "step_ended"
    assert engine.log[-1].failed  # type: ignore[attr-defined]


def test_generate_that_fails_aborts_its_own_requests_and_spares_the_others() -> None:
    model = OracleModel()
    engine = oracle_engine(model)
    engine.add_request([1, 2], greedy(6), request_id="other")
    collected = Collected()
    collected.take(engine.step())
    model.fail_at = {3}
    with pytest.raises(RuntimeError, match="as planned"):
        engine.generate([[3, 4], [5, 6]], greedy(6))
    assert list(engine.core.samples) == ["other"]
    while engine.has_unfinished:
        collected.take(engine.step())
        check(engine)
    assert collected.final["other"].token_ids == expected([1, 2], 6)
    assert_idle(engine)


def test_a_stream_that_fails_aborts_its_own_request_and_spares_the_others() -> None:
    model = OracleModel()
    engine = oracle_engine(model)
    engine.add_request([1, 2], greedy(6), request_id="other")
    stream = engine.stream([3, 4], greedy(6))
    next(stream)
    model.fail_at = {2}
    with pytest.raises(RuntimeError, match="as planned"):
        next(stream)
    assert list(stream) == []
    assert list(engine.core.samples) == ["other"]
    collected = Collected()
    while engine.has_unfinished:
        collected.take(engine.step())
    assert collected.final["other"].token_ids == expected([1, 2], 6)


def test_aborting_between_the_failure_and_the_retry_is_fine() -> None:
    for fail_at in range(1, _num_forwards(_forks) + 1):
        model, engine, prompts = _forks()
        model.fail_at = {fail_at}
        _add(engine, prompts)
        collected = Collected()
        while engine.has_unfinished:
            try:
                collected.take(engine.step())
            except RuntimeError:
                for name in list(prompts):
                    if name != "a" and name not in collected.final:
                        engine.abort(name)
            check(engine)
        assert_idle(engine)
        assert collected.final["a"].token_ids == expected(prompts["a"], NUM_TOKENS)
