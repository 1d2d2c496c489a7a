"""A run as a trace for Perfetto: `export_perfetto(engine.log, "run.json")`, then ui.perfetto.dev.

The file is in Chrome's Trace Event Format, which many viewers read
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).  In it are

- a track of the scheduler, with a slice a step: its budget and what was computed;
- a track a request, with a slice for its whole life, and inside it where it waited, what it
  computed in which step, and where it was without its blocks after a preemption;
- counters: blocks used, cached and free; requests in the batch and in line;
- marks where a request was injected or preempted, and a block evicted; an arrow from a
  preemption to the step that takes the request in again.

Times are whole microseconds since the first event, so that slices nest exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from paged_engine import events as ev
from paged_engine.replay import EngineState, reduce
from paged_engine.visualizer.lanes import whole

Record = dict[str, Any]

ENGINE, REQUESTS = 1, 2  # the two processes that the tracks are grouped in
SCHEDULER = 1  # its thread
# The thread of request 0.  Viewers know a thread by its number alone, whatever its process, and
# take the one with the process's number for its main one.
FIRST_REQUEST = 11


def export_perfetto(log: Iterable[ev.Event], path: str | Path) -> None:
    """Write a run as a file that Perfetto opens.

    Args:
        log: All events of an engine.
        path: Of the file, which is JSON.

    Raises:
        PagedEngineError: The log is not whole.
    """
    document = {
        "traceEvents": trace_records(log),
        "displayTimeUnit": "ms",
        "otherData": {"producer": "paged_engine", "time": "microseconds since the first event"},
    }
    Path(path).write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def trace_records(log: Iterable[ev.Event]) -> list[Record]:
    """The records of the file: names of tracks first, then all in order of time.

    Raises:
        PagedEngineError: The log is not whole.
    """
    events = whole(log)
    trace = _Trace(events[0].time)
    for event in events:
        trace.add(event)
    return trace.finish()


@dataclass(slots=True)
class _Open:
    """A slice that has begun."""

    start: int
    name: str
    args: Record
    computes: bool = False


@dataclass(slots=True)
class _Track:
    """A request's track: its whole life, and what it does at the moment, where it does anything.

    Attributes:
        life: Its outer slice.
        phase: Its inner one.
        reached: How many of its tokens were computed before, by steps that did not fail.
        flow: The arrow that waits for it to be taken in again.
    """

    thread: int
    life: _Open
    phase: _Open | None
    num_prompt_tokens: int
    num_output_tokens: int = 0
    scheduled_to: int = 0
    reached: int = 0
    flow: int | None = None


class _Trace:
    """Takes in events in order, and keeps the records they come to."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._now = 0
        self._state = EngineState()
        self._records: list[tuple[int, Record]] = []  # and how deep it lies
        self._counters: dict[tuple[int, str], Record] = {}  # by moment and name
        self._shown: dict[str, Record] = {}  # the last values of each counter
        self._names: dict[str, int] = {}  # the thread of each request
        self._tracks: dict[str, _Track] = {}  # of those that have not ended
        self._step: _Open | None = None
        self._scheduled: list[str] = []
        self._batch = 0  # that of the last step that had one
        self._flows = count(1)

    def add(self, event: ev.Event) -> None:
        """Take in the next event."""
        now = round((event.time - self._start) * 1e6)
        if now > self._now:
            self._count()
            self._now = now
        reduce(self._state, event)
        match event:
            case ev.StepBegan():
                args = {"step": event.step, "budget": event.budget}
                self._step = _Open(self._now, f"step {event.step}", args)
                self._scheduled = []
            case ev.Scheduled():
                self._compute(self._tracks[event.request_id], event)
            case ev.StepEnded():
                self._end_step(event)
            case ev.Queued():
                self._queue(event)
            case ev.Admitted():
                self._admit(self._tracks[event.request_id], event)
            case ev.Computed() | ev.Token():
                self._computed(self._tracks[event.request_id], event)
            case ev.Preempted():
                track = self._tracks[event.request_id]
                self._turn(track, _Open(self._now, "preempted", {"step": event.step}))
                self._instant("preempted", track.thread, {"step": event.step})
                track.flow = next(self._flows)
                self._flow("s", track)
            case ev.Requeued():
                track = self._tracks[event.request_id]
                self._fail(track)
                self._turn(track, _Open(self._now, event.status, {"step": event.step}))
            case ev.Finished() | ev.Aborted():
                reason = event.reason if isinstance(event, ev.Finished) else "abort"
                self._end(self._tracks.pop(event.request_id), reason)
            case ev.Evicted():
                args = {"step": event.step, "block": event.block_id}
                self._instant("evicted", SCHEDULER, args)
            case _:
                pass

    def finish(self) -> list[Record]:
        """Close what is open, and return everything."""
        for track in self._tracks.values():
            self._end(track, "unfinished")
        if self._step is not None:
            self._slice(self._step, SCHEDULER)
        self._count()
        records = [*self._records, *((0, record) for record in self._counters.values())]
        # of slices that begin together the outer one first, and what lies in them after them
        order = {"X": 0, "s": 1, "f": 1, "i": 2, "C": 3}
        records.sort(key=lambda r: (r[1]["ts"], order[r[1]["ph"]], -r[1].get("dur", 0), r[0]))
        return self._metadata() + [record for _, record in records]

    # ------------------------------------------------------------------ a step

    def _compute(self, track: _Track, event: ev.Scheduled) -> None:
        """A request computes something in this step."""
        end = event.start + event.num_tokens
        if event.start < track.reached:
            kind = "recompute"
        else:
            kind = "prefill" if event.start < track.num_prompt_tokens else "decode"
        name = kind if kind == "decode" else f"{kind} {event.num_tokens}"
        args = {"step": event.step, "start": event.start, "num_tokens": event.num_tokens}
        self._turn(track, _Open(self._now, name, args, computes=True))
        track.scheduled_to = end
        if track.flow is not None:
            self._flow("f", track)
            track.flow = None
        self._scheduled.append(event.request_id)
        self._batch = len(self._scheduled)

    def _computed(self, track: _Track, event: ev.Computed | ev.Token) -> None:
        """What it computed is there."""
        if isinstance(event, ev.Token):
            track.num_output_tokens += 1
            if track.phase is not None:
                args = {"token_id": event.token_id, "text": _clean(event.text)}
                track.phase.args |= args
        track.reached = max(track.reached, track.scheduled_to)
        self._turn(track, None)

    def _end_step(self, event: ev.StepEnded) -> None:
        for name in self._scheduled if event.failed else ():
            track = self._tracks.get(name)
            if track is not None and track.phase is not None and track.phase.computes:
                self._fail(track)
                self._turn(track, None)
        if self._step is not None:
            self._step.args |= {
                "num_tokens": event.num_tokens,
                "num_requests": len(self._scheduled),
                "failed": event.failed,
            }
            self._slice(self._step, SCHEDULER)
            self._step = None

    def _fail(self, track: _Track) -> None:
        """What it computes is rolled back."""
        if track.phase is not None:
            track.phase.args["failed"] = True

    # ------------------------------------------------------------------ a request

    def _queue(self, event: ev.Queued) -> None:
        name = event.request_id
        thread = self._names.setdefault(name, FIRST_REQUEST + len(self._names))
        args = {
            "num_prompt_tokens": len(event.prompt_token_ids),
            "max_tokens": event.max_tokens,
            "priority": event.priority,
        }
        life = _Open(self._now, _clean(name), args)
        waiting = _Open(self._now, "waiting", {})
        self._tracks[name] = _Track(thread, life, waiting, len(event.prompt_token_ids))
        if self._num_with_status("running"):
            self._instant("injected", thread, {"after_step": event.step})

    def _admit(self, track: _Track, event: ev.Admitted) -> None:
        track.life.args.setdefault("num_cached_tokens", event.num_cached_tokens)
        self._turn(track, None)

    def _end(self, track: _Track, reason: str) -> None:
        self._turn(track, None)
        track.life.args |= {"num_output_tokens": track.num_output_tokens, "reason": reason}
        self._slice(track.life, track.thread, depth=0)

    def _turn(self, track: _Track, phase: _Open | None) -> None:
        """End what it does, and let it do something else."""
        if track.phase is not None:
            self._slice(track.phase, track.thread)
        track.phase = phase

    # ------------------------------------------------------------------ records

    def _slice(self, what: _Open, thread: int, depth: int = 1) -> None:
        record = self._record("X", what.name, thread)
        record |= {"ts": what.start, "dur": self._now - what.start, "args": what.args}
        self._records.append((depth, record))

    def _instant(self, name: str, thread: int, args: Record) -> None:
        record = {**self._record("i", name, thread), "s": "t", "args": args}
        self._records.append((2, record))

    def _flow(self, phase: str, track: _Track) -> None:
        record = {**self._record(phase, "admitted again", track.thread), "id": track.flow}
        # it ends at the slice that lies around that moment
        self._records.append((2, {**record, "bp": "e"} if phase == "f" else record))

    def _record(self, phase: str, name: str, thread: int) -> Record:
        process = ENGINE if thread == SCHEDULER else REQUESTS
        kind = "engine" if process == ENGINE else "request"
        record = {"ph": phase, "name": name, "cat": kind, "pid": process, "tid": thread}
        return {**record, "ts": self._now}

    def _count(self) -> None:
        """Say what the counters are after all that happened at this moment, where it is new."""
        state = self._state
        used, cached = state.num_used, state.num_cached
        free = len(state.blocks) - used - cached
        batch = self._batch if self._num_with_status("running") else 0
        in_line = self._num_with_status("waiting", "preempted")
        for name, values in (
            ("blocks", {"used": used, "cached": cached, "free": free}),
            ("requests", {"batch": batch, "in line": in_line}),
        ):
            if self._shown.get(name) != values:
                self._shown[name] = values
                record = {**self._record("C", name, SCHEDULER), "args": values}
                self._counters[self._now, name] = record

    def _num_with_status(self, *statuses: str) -> int:
        return sum(request.status in statuses for request in self._state.requests.values())

    def _metadata(self) -> list[Record]:
        """What the tracks are called, and their order."""
        names = [
            (ENGINE, ENGINE, "process_name", "engine"),
            (REQUESTS, REQUESTS, "process_name", "requests"),
            (ENGINE, SCHEDULER, "thread_name", "scheduler"),
        ]
        for name, thread in self._names.items():
            names.append((REQUESTS, thread, "thread_name", _clean(name)))
        records = [
            {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}
            for process, thread, what, name in names
        ]
        for process, thread, what, _ in names:
            sort = what.replace("_name", "_sort_index")
            order = process if what == "process_name" else thread
            args = {"sort_index": order}
            records.append({"ph": "M", "name": sort, "pid": process, "tid": thread, "args": args})
        return records


def _clean(text: str) -> str:
    """Text that can be written in any encoding of Unicode."""
    return text.encode("utf-8", "replace").decode("utf-8")
