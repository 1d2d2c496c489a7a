"""Frames for the page, without a page: their number, their size, and what folds into the key."""

from __future__ import annotations

import json
import zlib

import pytest

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import EngineState, replay
from paged_engine.visualizer.timeline import Timeline, pack
from tests.browser.runs import eventful, plain


def test_every_step_is_a_frame_and_what_comes_after_it_belongs_to_the_next() -> None:
    log = eventful().log
    timeline = Timeline(log)
    steps = len(log.of_kind("step_ended"))
    assert [frame.step for frame in timeline.frames if frame.budget] == list(range(1, steps + 1))
    assert [e for frame in timeline.frames for e in frame.events] == list(log)
    assert [frame.step for frame in timeline.frames if frame.failed] == [4]


def test_taken_as_it_comes_it_is_the_same() -> None:
    engine = eventful()
    live = Timeline()
    for event in engine.log:
        live.add(event)
    live.flush()
    assert live.document() == Timeline(engine.log).document()


def test_flush_makes_a_frame_of_what_no_step_has_taken_yet_and_nothing_of_nothing() -> None:
    timeline = Timeline([ev.EngineStarted(5.0, 0, 4, 4, 8, 64)])
    assert len(timeline) == 1
    timeline.flush()
    assert len(timeline) == 1
    timeline.add(ev.PoolResized(6.5, 0, 3))
    assert len(timeline) == 1
    timeline.flush()
    assert timeline.since(1) == [{"s": 0, "t": 1.5, "b": 0, "f": 0, "o": [["u", 3]]}]


def test_a_step_is_one_frame_also_when_a_page_asks_in_the_middle_of_it() -> None:
    log = eventful().log
    timeline = Timeline()
    for event in log:
        timeline.add(event)
        if event.step:
            timeline.flush()
    assert len([f for f in timeline.frames if f.budget]) == len(log.of_kind("step_ended"))
    assert all(f.budget or not any(o[0] == "d" for o in f.operations) for f in timeline.frames)


def test_old_frames_fold_into_the_key_frame() -> None:
    log = eventful().log
    timeline = Timeline(log, most_frames=12)
    assert (len(timeline.frames), len(timeline)) == (12, len(Timeline(log)))
    with pytest.raises(PagedEngineError, match="frame 3 is gone; expected"):
        timeline.since(3)
    key = timeline.key_frame()
    assert key["first"] == timeline.num_dropped
    assert all(request["text"] for request in key["requests"] if request["tokens"])


def test_a_run_that_must_be_small_keeps_its_end() -> None:
    timeline = Timeline(eventful().log)
    whole = timeline.document()
    size = len(pack(whole))
    packed = timeline.packed(size // 2)
    assert len(packed) <= size // 2
    short = json.loads(zlib.decompress(packed))
    frames = json.loads(json.dumps(whole["frames"]))
    assert 0 < len(short["frames"]) < len(frames)
    assert short["frames"] == frames[-len(short["frames"]) :]
    assert timeline.document() == whole  # it was not touched
    assert json.loads(zlib.decompress(pack(whole))) == json.loads(json.dumps(whole))


def test_a_key_frame_has_the_words_and_texts_of_its_requests() -> None:
    log = eventful().log
    timeline = Timeline(log, describe=lambda event: f"<{event.request_id}>", most_frames=1)
    requests = {r["id"]: r for r in timeline.key_frame()["requests"]}
    assert requests["early-0"]["words"] == "<early-0>"
    texts = [e.text for e in log.of_kind("token", "finished") if e.request_id == "early-0"]  # type: ignore[attr-defined]
    assert requests["early-0"]["text"] == "".join(texts) != ""


def test_the_base_of_a_log_that_lost_its_beginning() -> None:
    events = list(eventful().log)
    base = replay(events[:100], EngineState())
    timeline = Timeline(events[100:], base, most_frames=1)
    (last,) = timeline.frames
    assert timeline.key_frame()["num_blocks"] == 24
    assert plain(replay(last.events, base)) == plain(replay(events))


def test_an_event_without_an_operation_is_refused() -> None:
    class Strange(ev.Event):
        kind = "strange"

    timeline = Timeline([ev.EngineStarted(0.0, 0, 4, 4, 8, 64)])
    with pytest.raises(PagedEngineError, match="no operation for"):
        timeline.add(Strange(0.0, 1))
    ev.EVENT_TYPES.pop("strange", None)
