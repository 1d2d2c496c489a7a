"""The event log: what is kept, what is dropped, who is told, what is written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from tests.helpers.oracles import example_event


def began(step: int) -> ev.StepBegan:
    return ev.StepBegan(0.0, step, 1)


@pytest.mark.parametrize("cls", ev.EVENT_TYPES.values(), ids=lambda cls: cls.kind)
def test_every_event_comes_back_from_its_line(cls: type[ev.Event]) -> None:
    event = example_event(cls)
    line = ev.to_json(event)
    assert "\n" not in line
    assert ev.from_json(line) == event


def test_every_event_has_a_kind_of_its_own() -> None:
    assert {cls.__name__ for cls in ev.EVENT_TYPES.values()} == {
        cls.__name__ for cls in ev.Event.__subclasses__()
    }


@pytest.mark.parametrize(
    "line",
    [
        *["", "{", "null", "[]", "3", "{}", '{"kind":"no such"}', '{"kind":"step_began"}'],
        '{"kind":"step_began","time":0,"step":1,"budget":2,"more":3}',
        '{"kind":"queued","time":0,"step":0,"request_id":"a"}',
    ],
)
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(PagedEngineError, match="not an event"):
        ev.from_json(line)


def test_a_log_of_another_version_is_refused() -> None:
    line = ev.to_json(ev.EngineStarted(0.0, 0, 1, 1, 1, 1, version=99))
    with pytest.raises(PagedEngineError, match="version 99; expected 1"):
        ev.from_json(line)


def test_a_log_comes_back_from_its_file(tmp_path: Path) -> None:
    log = ev.EventLog()
    for cls in ev.EVENT_TYPES.values():
        log.append(example_event(cls))
    log.to_jsonl(tmp_path / "log.jsonl")
    assert ev.EventLog.from_jsonl(tmp_path / "log.jsonl") == log
    memory = io.StringIO()
    log.to_jsonl(memory)
    assert ev.EventLog.from_jsonl(memory.getvalue().splitlines()) == log
    assert ev.EventLog.from_jsonl([]) == ev.EventLog()


def test_the_oldest_events_go_first_and_are_shown() -> None:
    dropped: list[ev.Event] = []
    log = ev.EventLog(max_events=2, on_drop=dropped.append)
    for step in range(5):
        log.append(began(step))
    assert [e.step for e in log] == [3, 4]
    assert [e.step for e in dropped] == [0, 1, 2]
    assert (len(log), log.num_dropped, log[0].step) == (2, 3, 3)
    with pytest.raises(PagedEngineError, match="3 events were dropped"):
        log.to_jsonl(io.StringIO())


def test_events_are_found_by_kind() -> None:
    log = ev.EventLog()
    log.append(began(1))
    log.append(ev.StepEnded(0.0, 1, 4))
    assert log.of_kind("step_ended") == [ev.StepEnded(0.0, 1, 4)]
    with pytest.raises(PagedEngineError, match="no event is of kind \\['ended'\\]"):
        log.of_kind("ended")


def test_a_listener_is_told_until_it_ends_that() -> None:
    log, told = ev.EventLog(), list[int]()
    end = log.subscribe(lambda e: told.append(e.step))
    log.append(began(1))
    end()
    end()
    log.append(began(2))
    assert told == [1]


def test_a_listener_that_raises_is_warned_about_and_harms_nobody() -> None:
    log, told = ev.EventLog(), list[int]()

    def bad(event: ev.Event) -> None:
        raise ZeroDivisionError("oh")

    log.subscribe(bad)
    log.subscribe(lambda e: told.append(e.step))
    with pytest.warns(RuntimeWarning, match="raised ZeroDivisionError: oh at a step_began event"):
        log.append(began(1))
    log.append(began(2))
    assert told == [1, 2] and len(log) == 2


def test_listeners_wait_while_the_log_is_held() -> None:
    log, told = ev.EventLog(), list[int]()
    log.subscribe(lambda e: told.append(e.step))
    with log.held():
        log.append(began(1))
        with log.held():
            log.append(began(2))
        assert told == [] and len(log) == 2
    assert told == [1, 2]


def test_listeners_are_told_also_after_a_failure() -> None:
    log, told = ev.EventLog(), list[int]()
    log.subscribe(lambda e: told.append(e.step))
    with pytest.raises(ZeroDivisionError), log.held():
        log.append(began(1))
        raise ZeroDivisionError
    log.append(began(2))
    assert told == [1, 2]


def test_every_listener_hears_in_order_what_another_one_causes() -> None:
    log, told = ev.EventLog(), list[int]()

    def causes(event: ev.Event) -> None:
        if event.step == 1:
            log.append(began(10))

    log.subscribe(causes)
    log.subscribe(lambda e: told.append(e.step))
    with log.held():
        log.append(began(1))
        log.append(began(2))
    assert told == [1, 2, 10]
    assert [e.step for e in log] == [1, 2, 10]
