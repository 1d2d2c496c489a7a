"""The page applies frames as `replay` applies events: the same state after every one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from paged_engine.events import EVENT_TYPES
from paged_engine.metrics import run_metrics
from paged_engine.replay import EngineState, reduce
from paged_engine.visualizer.timeline import Timeline
from tests.browser.runs import eventful, plain


def python_states(timeline: Timeline) -> list[dict[str, Any]]:
    """After each frame, by the events behind it."""
    state, states = EngineState(), []
    for frame in timeline.frames:
        for event in frame.events:
            reduce(state, event)
        states.append(plain(state))
    return states


def test_the_run_has_every_kind_of_event() -> None:
    assert {event.kind for event in eventful().log} == set(EVENT_TYPES)


@pytest.mark.parametrize("options", [{}, {"num_blocks": 200, "max_num_batched_tokens": 64}])
def test_page_and_python_agree_after_every_frame(
    show: Callable[..., Any], options: dict[str, int]
) -> None:
    timeline = Timeline(eventful(**options).log)
    page = show(timeline.document())
    count = len(timeline.frames)
    forwards = page.evaluate(
        f"Array.from({{length: {count}}}, (_, i) => view.history.plainAt(i + 1))"
    )
    assert forwards == python_states(timeline)
    backwards = page.evaluate(
        f"Array.from({{length: {count}}}, (_, i) => view.history.plainAt({count} - i))"
    )
    assert backwards == forwards[::-1]


def test_a_key_frame_stands_for_the_frames_before_it(show: Callable[..., Any]) -> None:
    log = eventful().log
    states = python_states(Timeline(log))
    timeline = Timeline(log, most_frames=20)
    assert timeline.num_dropped == len(states) - 20
    page = show(timeline.document())
    got = page.evaluate("Array.from({length: 21}, (_, i) => view.history.plainAt(i))")
    assert got == states[-21:]


def test_more_frames_than_lie_between_two_snapshots(show: Callable[..., Any]) -> None:
    from tests.engine.engine_helpers import greedy, oracle_engine

    engine = oracle_engine(num_blocks=80)
    engine.add_request([1, 2, 3], greedy(200))
    while engine.has_unfinished:
        engine.step()
    timeline = Timeline(engine.log)
    assert len(timeline.frames) == 200
    page = show(timeline.document())
    assert page.evaluate("view.history.snapshots.length") == 4
    states = python_states(timeline)
    for count in (1, 63, 64, 65, 128, 150, 199, 200):
        assert page.evaluate(f"view.history.plainAt({count})") == states[count - 1]


def test_frames_come_in_parts_and_a_gap_is_noticed(show: Callable[..., Any]) -> None:
    timeline = Timeline(eventful().log)
    whole = timeline.document()
    page = show({"key": whole["key"], "frames": whole["frames"][:10]})
    later, overlapping = json.dumps(whole["frames"][12:]), json.dumps(whole["frames"][5:])
    assert page.evaluate(f"view.addFrames(12, {later})") is False
    assert page.evaluate("view.history.length") == 10
    assert page.evaluate(f"view.addFrames(5, {overlapping})") is True
    assert page.evaluate("view.history.plainAt(1000)") == python_states(timeline)[-1]


def test_the_gauges_say_what_the_metrics_say(show: Callable[..., Any]) -> None:
    engine = eventful()
    run = run_metrics(engine.log)
    page = show(Timeline(engine.log).document())
    last = page.evaluate("view.history.last")
    got = {r["id"]: r for r in last["requests"]}
    for request in run.requests:
        mine = got[request.request_id]
        if request.ttft is not None:
            assert mine["firstAt"] - mine["queuedAt"] == pytest.approx(request.ttft, abs=2e-4)
        assert mine["gaps"] == pytest.approx(list(request.itl), abs=3e-4)
    assert last["preemptions"] == run.num_preemptions
    assert last["hitTokens"] / last["promptTokens"] == pytest.approx(run.prefix_hit_rate)
    steps = page.evaluate("view.book.steps")
    assert [s["prefill"] + s["decode"] for s in steps] == [
        event.num_tokens for event in engine.log.of_kind("step_ended")
    ]
