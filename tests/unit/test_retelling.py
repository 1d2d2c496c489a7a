"""Events told anew from the states of a reducer, right or wrong."""

from __future__ import annotations

from typing import Any

import pytest

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import EngineState, copy_state, reduce, replay
from paged_engine.visualizer import EngineView, retell
from tests.browser.runs import eventful, plain
from tests.engine.engine_helpers import greedy, oracle_engine


def without(*kinds: str) -> Any:
    """A reducer that has no rule for these."""
    return lambda state, event: state if event.kind in kinds else reduce(state, event)


def test_a_right_reducer_tells_the_same_events() -> None:
    log = eventful().log
    assert list(retell(log, reduce)) == list(log)


def test_one_that_returns_new_states_or_forgets_the_finished_is_right_as_well() -> None:
    def new_one(state: EngineState, event: ev.Event) -> EngineState:
        state = reduce(copy_state(state), event)
        if event.kind in ("finished", "aborted"):
            del state.requests[event.request_id]  # type: ignore[attr-defined]
        return state

    log = eventful().log
    assert list(retell(log, new_one)) == list(log)


KINDS = sorted(ev.EVENT_TYPES.keys() - {"step_began", "step_ended", "scheduled", "copied"})
# Nothing else can be drawn without them, so a reducer that lacks them raises by itself.
NEEDED = {"engine_started", "queued"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - NEEDED))
def test_a_rule_that_is_missing_is_told_as_it_is_understood(kind: str) -> None:
    log, reducer = eventful().log, without(kind)
    wanted, told = EngineState(), list(retell(log, reducer))
    for event in log:
        wanted = reducer(wanted, event)
    shown, right = plain(replay(told)), plain(wanted)
    for counted in ("blocks", "used", "shared", "cached"):  # by tables, also where these overlap
        shown.pop(counted), right.pop(counted)
    if kind != "engine_started":
        assert shown == right
    assert [e.kind for e in told if e.kind.startswith("step")] == [
        e.kind for e in log if e.kind.startswith("step")
    ]


def test_blocks_that_are_never_given_back_stay_in_the_picture() -> None:
    log = eventful().log
    told = list(retell(log, without("freed")))
    assert not [e for e in told if e.kind == "freed"]
    assert replay(told).num_used > 0 == replay(log).num_used


def test_a_reducer_that_knows_no_blocks_shows_who_runs_and_nothing_in_the_pool() -> None:
    blind = without("engine_started", "hit", "allocated", "freed", "cached", "evicted")
    told = replay(retell(eventful().log, blind))
    assert told.num_used == 0 and len(told.blocks) == 24
    assert told.requests["gone"].status == "abort"


def test_one_that_does_nothing_shows_steps_in_which_nothing_happens() -> None:
    told = list(retell(eventful().log, lambda state, event: state))
    assert {e.kind for e in told} <= {"engine_started", "step_began", "step_ended", "copied"}


@pytest.mark.parametrize("answer", [None, 3, {}])
def test_a_reducer_must_return_the_state(answer: Any) -> None:
    with pytest.raises(PagedEngineError, match="returned .* at a engine_started event; expected"):
        list(retell(eventful().log, lambda state, event: answer))


def test_a_block_that_the_pool_has_not_is_refused() -> None:
    def wrong(state: EngineState, event: ev.Event) -> EngineState:
        reduce(state, event)
        if event.kind == "allocated":
            state.requests[event.request_id].block_table[-1] += 100  # type: ignore[attr-defined]
        return state

    with pytest.raises(PagedEngineError, match="it has 24 blocks, from 0 on"):
        list(retell(eventful().log, wrong))


# ------------------------------------------------------------------ through the view


def test_a_recorded_run_is_shown_as_a_reducer_understands_it() -> None:
    log = eventful().log
    plainly = EngineView.replay(log).timeline.document()
    assert EngineView.replay(log, reducer=reduce).timeline.document() == plainly
    forgetful = EngineView.replay(log, reducer=without("freed")).timeline.document()
    names = [operation[0] for frame in forgetful["frames"] for operation in frame["o"]]
    assert "f" not in names and "a" in names


def test_a_live_run_is_too_and_from_its_middle_on() -> None:
    engine = oracle_engine(max_events=40)
    views = [EngineView(engine), EngineView(engine, reducer=reduce)]
    for number in range(6):
        engine.add_request([number, 7, 8], greedy(12))
    views[0].finish()
    assert views[0].timeline.document() == views[1].timeline.document()
    assert engine.log.num_dropped
    late = EngineView(engine, reducer=reduce)
    assert late.timeline.document() == EngineView(engine).timeline.document()
