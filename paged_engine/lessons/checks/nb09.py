"""Checks of notebook 09: a state that is that of the engine, a rewind, and three invariants."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from paged_engine import events as ev
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.lessons.exercises import NotYet, exercise, expect
from paged_engine.lessons.solutions import nb09 as lesson
from paged_engine.models import tiny
from paged_engine.replay import BlockState, EngineState, RequestState, copy_state, replay
from paged_engine.request import SamplingParams

Function = Callable[..., Any]

_reduce: Function = lesson.reduce  # which has no annotations, as in the notebook

HINTS = {
    "engine_started": "a pool of num_blocks new BlockState(), its sizes and both limits",
    "pool_resized": "num_usable is how many blocks may be in use from now on",
    "parameters_changed": "both limits, as in engine_started",
    "hit": "as for allocated: at the end of the table, and one reference more to each block",
    "allocated": "at the end of the table, and one reference more to each block",
    "freed": "the end of the table goes, as many as block_ids has, and one reference of each block",
    "cached": "state.blocks[event.block_id].block_hash",
    "evicted": "the block's hash is None from now on",
}
_LIVES = "hand every other kind to lives, and return what it returns"


# ------------------------------------------------------------------ 09.1


@exercise("09.1", "after any number of events your state is that of the engine")
def check_reduce(reduce: Function) -> None:
    """By hand, kind by kind; then a whole run, event by event."""
    _by_hand(reduce)
    _whole_run(reduce)


START = [
    ev.EngineStarted(0.0, 0, 4, 2, 8, 16),
    ev.Queued(0.0, 0, "A", (1, 2, 3), 5, 0, 7),
    ev.Queued(0.0, 0, "B", (1, 2, 3), 5, 0, 7),
]
BY_HAND: list[ev.Event] = [
    *START,
    ev.Admitted(0.0, 1, "A"),
    ev.Allocated(0.0, 1, "A", (3, 1)),
    ev.Scheduled(0.0, 1, "A", 0, 3),
    ev.Cached(0.0, 1, 3, 99),
    ev.Token(0.0, 1, "A", 8),
    ev.Admitted(0.0, 2, "B", 2),
    ev.Hit(0.0, 2, "B", (3,)),
    ev.Allocated(0.0, 2, "B", (2,)),
    ev.Allocated(0.0, 3, "A", (0,)),
    ev.PoolResized(0.0, 3, 3),
    ev.ParametersChanged(0.0, 3, 2, 9),
    ev.Freed(0.0, 4, "B", (2,)),
    ev.Freed(0.0, 4, "A", (3, 1, 0)),
    ev.Preempted(0.0, 4, "A"),
    ev.Freed(0.0, 5, "B", (3,)),
    ev.Aborted(0.0, 5, "B"),
    ev.Evicted(0.0, 6, 3),
]


def _by_hand(reduce: Function) -> None:
    mine, right = EngineState(), EngineState()
    for number, event in enumerate(BY_HAND, 1):
        mine = _next(reduce, mine, event, f"event {number} of a log by hand, {_short(event)}")
        right = _reduce(right, event)
        _same(mine, right, event, f"after event {number} of a log by hand, {_short(event)}")


def _whole_run(reduce: Function) -> None:
    events, snapshots = _run()
    mine, right = EngineState(), EngineState()
    for k, event in enumerate(events, 1):
        when = f"event {k} of a run with hits, a preemption and an abort, {_short(event)}"
        mine = _next(reduce, mine, event, when)
        right = _reduce(right, event)
        _same(mine, right, event, f"after {when}")
        if k in snapshots:
            told = {name: r for name, r in mine.requests.items() if r.status in _UNFINISHED}
            expect(told, snapshots[k].requests, f"after {when}, the unfinished requests")


_UNFINISHED = ("waiting", "running", "preempted")


def _next(reduce: Function, state: EngineState, event: ev.Event, when: str) -> EngineState:
    hint = "return the state at the end, whatever the event was"
    before = copy.deepcopy(event)
    after = reduce(state, event)
    if after is None:
        raise NotYet("the state", "None", when, hint)
    if not isinstance(after, EngineState):
        raise NotYet("an EngineState", f"a {type(after).__name__}", when, hint)
    if before != event:
        raise NotYet("the event left as it was", repr(event), when, "events are only read")
    return after


def _same(mine: EngineState, right: EngineState, event: ev.Event, when: str) -> None:
    """First what is told apart best."""
    hint = HINTS.get(event.kind, _LIVES)
    for name in ("block_size", "num_usable", "max_num_seqs", "max_num_batched_tokens"):
        expect(getattr(mine, name), getattr(right, name), f"{when}: {name}", hint)
    expect(len(mine.blocks), len(right.blocks), f"{when}: the number of blocks", hint)
    if len({id(block) for block in mine.blocks}) < len(mine.blocks):
        told = "[BlockState()] * n is n times the same block"
        raise NotYet("as many blocks as the pool has", "one block many times", when, told)
    expect(sorted(mine.requests), sorted(right.requests), f"{when}: the requests", hint)
    for name, request in right.requests.items():
        got = mine.requests[name]
        for what in ("status", "block_table", "num_computed_tokens", "output_token_ids"):
            expect(getattr(got, what), getattr(request, what), f"{when}: {what} of {name}", hint)
    for what in ("ref_cnt", "block_hash"):
        got_all = [getattr(block, what) for block in mine.blocks]
        wanted = [getattr(block, what) for block in right.blocks]
        expect(got_all, wanted, f"{when}: {what} of all blocks", hint)


def _short(event: ev.Event) -> str:
    of = getattr(event, "request_id", "")
    blocks = getattr(event, "block_ids", ())
    return " ".join([event.kind, *([of] if of else []), *([str(list(blocks))] if blocks else [])])


@cache
def _run() -> tuple[list[ev.Event], dict[int, EngineState]]:
    """A run of the toy model and what the engine said of itself between its steps."""
    limits = EngineConfig(num_blocks=8, block_size=2, max_num_seqs=3, max_num_batched_tokens=6)
    engine = ContinuousEngine(tiny(), config=limits)
    prompts = {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 9], "c": [7] * 6}
    for name, prompt in prompts.items():
        params = SamplingParams(max_tokens=7, ignore_eos=True)
        engine.add_request(prompt, params, request_id=name)
    snapshots = {}
    for step in range(100):
        if not engine.has_unfinished:
            break
        engine.step()
        if step == 4:
            engine.resize_pool(7)
            engine.set_limits(max_num_seqs=2)
        if step == 6:
            engine.abort("c")
        snapshots[len(engine.log)] = engine.snapshot()
    return list(engine.log), snapshots


# ------------------------------------------------------------------ 09.2


@exercise("09.2", "any moment is at most `every` events away, and no key is ever changed")
def check_at(at: Function) -> None:
    """Every k, forwards and backwards, counting the calls of `reduce`."""
    events, _ = _run()
    for every, number in ((8, 40), (7, 28), (5, 3)):
        calls = [0]
        host = _history(at, events[:number], every, calls)
        for k in [*range(number + 1), *range(number, -1, -1)]:
            calls[0] = 0
            when = f"{number} events, a key before every {every}th, at({k})"
            got = host.at(k)
            if not isinstance(got, EngineState):
                raise NotYet("an EngineState", got, when, "return the state at the end")
            if got != replay(events[:k]):
                raise NotYet(
                    f"the state after {k} events", _far(got, events[:number], k), when,
                    "begin with a copy of the nearest key at or before k, and apply the events "
                    "from there up to, and without, events[k]",
                )  # fmt: skip
            _unspoiled(host, events, every, got, when)
            if calls[0] > every:
                told = "begin at the nearest key, self.keys[k // self.every], not at the start"
                raise NotYet(f"at most {every} calls of reduce", calls[0], when, told)


def _history(at: Function, events: Sequence[ev.Event], every: int, calls: list[int]) -> Any:
    def counted(state: EngineState, event: ev.Event) -> EngineState:
        calls[0] += 1
        after: EngineState = _reduce(state, event)
        return after

    return type("History", (lesson.History,), {"at": at})(events, counted, every)


def _far(got: EngineState, events: Sequence[ev.Event], k: int) -> str:
    """Which moment it is instead, if it is one."""
    for other in range(len(events) + 1):
        if other != k and got == replay(events[:other]):
            return f"the state after {other}"
    return "a state that the run never had"


def _unspoiled(
    host: Any, events: Sequence[ev.Event], every: int, got: EngineState, when: str
) -> None:
    hint = "reduce changes the state that it is given: hand it copy_state(key)"
    for place, key in enumerate(host.keys):
        if key is got or key != replay(events[: place * every]):
            raise NotYet("all keys left as they were", f"key {place} changed", when, hint)


# ------------------------------------------------------------------ 09.3


@exercise("09.3", "a count that is off, an idle holder and a careless share are all told")
def check_broken(broken: Function) -> None:
    """A sound state, each fault alone, and two at once."""
    events, _ = _run()
    for k in range(len(events) + 1):
        _names(broken, replay(events[:k]), set(), f"a sound run after {k} events", "")
    count = "ref_cnt of each block against how many tables it stands in, also where that is 0"
    idle = 'whose block_table is not empty and whose status is not "running"'
    shared = "a block in two tables or more whose block_hash is None"
    for ref_cnt in (0, 2):
        when = f"a block in one table with ref_cnt {ref_cnt}"
        _names(broken, _state(refs=[ref_cnt, 1, 0]), {"count"}, when, count)
    when = "a block in no table with ref_cnt 1"
    _names(broken, _state(refs=[1, 1, 1]), {"count"}, when, count)
    for status in ("waiting", "preempted", "abort", "stop", "length"):
        when = f"a request of status {status!r} that holds a block"
        _names(broken, _state(status=status), {"idle"}, when, idle)
    tables = [[0, 1], [0]]
    when = "a block in two tables, with a hash and ref_cnt 2"
    _names(broken, _state(tables, refs=[2, 1, 0], hashes=[7, None, None]), set(), when, shared)
    when = "a block in two tables, without a hash and with ref_cnt 2"
    _names(broken, _state(tables, refs=[2, 1, 0]), {"shared"}, when, shared)
    when = "a block in two tables, without a hash and with ref_cnt 1"
    both = _state(tables, refs=[1, 1, 0])
    _names(broken, both, {"count", "shared"}, when, "report all that do not hold, not the first")
    when = "hash 0: a hash like any other"
    zero = _state(tables, refs=[2, 1, 0], hashes=[0, None, None])
    _names(broken, zero, set(), when, "0 counts as false: ask whether block_hash is None")


def _state(
    tables: Sequence[list[int]] = ((0,), (1,)),  # type: ignore[assignment]
    refs: Sequence[int] = (1, 1, 0),
    hashes: Sequence[int | None] = (None, None, None),
    status: str = "running",
) -> EngineState:
    names = ["A", "B"]
    return EngineState(
        block_size=4,
        num_usable=3,
        blocks=[BlockState(*both) for both in zip(refs, hashes, strict=True)],
        requests={
            name: RequestState(name, (1, 2), status if name == "A" else "running", [], 0, [*table])
            for name, table in zip(names, tables, strict=True)
        },
    )


def _names(broken: Function, state: EngineState, wanted: set[str], when: str, hint: str) -> None:
    before = copy_state(state)
    got = broken(state)
    if state != before:
        raise NotYet("the state left as it was", "a changed one", when, "look, and change nothing")
    if not isinstance(got, (set, frozenset, list, tuple)):
        raise NotYet(f"a set of names, {wanted or 'empty'}", got, when, hint)
    expect(set(got), wanted, when, hint or "nothing is wrong here: return an empty set")
