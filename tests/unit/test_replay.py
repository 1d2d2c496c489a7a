"""From events back to state."""

from __future__ import annotations

from copy import deepcopy

import pytest

from paged_engine import events as ev
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.errors import PagedEngineError
from paged_engine.replay import BlockState, EngineState, forget_finished, reduce, replay
from paged_engine.request import SamplingParams
from tests.helpers.fakes import OracleModel, VirtualClock
from tests.helpers.oracles import example_event

START = [
    ev.EngineStarted(0.0, 0, 4, 2, 8, 16),
    ev.Queued(0.0, 0, "a", (1, 2, 3), 5, 0, 7),
    ev.Queued(0.0, 0, "b", (1, 2, 3), 5, 0, 7),
]


def after(*events: ev.Event) -> EngineState:
    return replay([*START, *events])


def test_a_log_begins_with_the_sizes() -> None:
    state = replay(START[:1])
    assert (state.block_size, state.num_usable) == (2, 4)
    assert (state.max_num_seqs, state.max_num_batched_tokens) == (8, 16)
    assert state.blocks == [BlockState()] * 4


def test_shared_blocks_are_counted_by_holder() -> None:
    state = after(
        ev.Admitted(0.0, 1, "a"),
        ev.Allocated(0.0, 1, "a", (0, 1)),
        ev.Cached(0.0, 1, 0, 99),
        ev.Admitted(0.0, 2, "b", 2),
        ev.Hit(0.0, 2, "b", (0,)),
        ev.Allocated(0.0, 2, "b", (2,)),
    )
    assert state.blocks[0] == BlockState(2, 99)
    assert state.owners() == {0: ["a", "b"], 1: ["a"], 2: ["b"]}
    assert (state.num_used, state.num_cached) == (3, 0)
    assert state.requests["b"].num_computed_tokens == 2
    reduce(state, ev.Freed(0.0, 3, "b", (2,)))
    assert state.requests["b"].block_table == [0] and state.num_used == 2
    replay([ev.Freed(0.0, 3, "b", (0,)), ev.Freed(0.0, 3, "a", (0, 1))], state)
    assert (state.num_used, state.num_cached) == (0, 1)
    reduce(state, ev.Evicted(0.0, 4, 0))
    assert state.num_cached == 0


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (ev.Preempted(0.0, 2, "a"), "preempted"),
        (ev.Requeued(0.0, 2, "a", "preempted"), "preempted"),
        (ev.Requeued(0.0, 2, "a", "waiting"), "waiting"),
    ],
)
def test_who_waits_again_has_nothing_computed(event: ev.Event, status: str) -> None:
    state = after(ev.Admitted(0.0, 1, "a"), ev.Computed(0.0, 1, "a", 3), event)
    assert (state.requests["a"].status, state.requests["a"].num_computed_tokens) == (status, 0)


def test_the_finished_are_kept_until_they_are_forgotten() -> None:
    state = after(
        ev.Token(0.0, 1, "a", 5), ev.Finished(0.0, 1, "a", "length"), ev.Aborted(0.0, 1, "b")
    )
    assert state.requests["a"].output_token_ids == [5]
    assert state.requests["a"].num_computed_tokens == state.requests["a"].num_tokens - 1
    assert [r.status for r in state.requests.values()] == ["length", "abort"]
    assert forget_finished(state).requests == {}


def test_limits_change() -> None:
    state = after(ev.PoolResized(0.0, 1, 3), ev.ParametersChanged(0.0, 1, 2, 5))
    assert (state.num_usable, state.max_num_seqs, state.max_num_batched_tokens) == (3, 2, 5)


def test_an_event_about_a_stranger_is_refused() -> None:
    with pytest.raises(PagedEngineError, match="'z', which was never queued"):
        after(ev.Admitted(0.0, 1, "z"))


def test_an_event_without_a_rule_is_refused() -> None:
    with pytest.raises(PagedEngineError, match="no rule for"):
        reduce(EngineState(), ev.Event(0.0, 1))


@pytest.mark.parametrize("cls", ev.EVENT_TYPES.values(), ids=lambda cls: cls.kind)
def test_every_kind_of_event_has_a_rule(cls: type[ev.Event]) -> None:
    event = example_event(cls)
    state = EngineState(blocks=[BlockState() for _ in range(4)])
    try:
        reduce(state, event)
    except PagedEngineError as error:
        assert "no rule" not in str(error)


def small_engine(max_events: int = 1_000_000) -> ContinuousEngine:
    config = EngineConfig(
        block_size=2,
        num_blocks=8,
        max_num_seqs=3,
        max_num_batched_tokens=6,
        max_events=max_events,
    )
    return ContinuousEngine(OracleModel(), config=config, clock=VirtualClock())


def serve(engine: ContinuousEngine) -> None:
    """A run with sharing, preemption, a fork, an abort and a smaller pool; checked as it goes."""
    assert engine.core.recorder is not None
    engine.add_request([1, 2, 3, 4, 5], SamplingParams(max_tokens=6), request_id="a")
    engine.add_request([1, 2, 3, 9], SamplingParams(max_tokens=9, n=2), request_id="b")
    engine.add_request([7] * 6, SamplingParams(max_tokens=8), request_id="c")
    for step in range(200):
        if not engine.has_unfinished:
            return
        engine.step()
        if step == 3:
            engine.resize_pool(7)
        if step == 5:
            engine.abort("c")
        told = replay(engine.log, deepcopy(engine.core.recorder.base))
        assert forget_finished(told) == engine.snapshot()
    raise AssertionError("no end")


def test_a_replay_equals_the_engine_at_every_step() -> None:
    engine = small_engine()
    serve(engine)
    kinds = {event.kind for event in engine.log}
    assert {"hit", "preempted", "copied", "aborted", "evicted", "pool_resized"} <= kinds


def test_a_bounded_log_replays_from_its_base() -> None:
    engine = small_engine(max_events=7)
    serve(engine)
    assert len(engine.log) == 7 and engine.log.num_dropped > 50


def test_the_same_run_gives_the_same_events() -> None:
    one, two = small_engine(), small_engine()
    serve(one)
    serve(two)
    assert one.log == two.log
