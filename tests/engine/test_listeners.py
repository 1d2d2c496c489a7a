"""What a user's callback does or fails to do harms no request, and the log stays true."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest

from paged_engine import ContinuousEngine
from paged_engine.errors import PagedEngineError
from paged_engine.events import EVENT_TYPES, EventLog
from paged_engine.replay import EngineState, forget_finished, reduce, replay
from tests.engine.engine_helpers import (
    Collected,
    assert_idle,
    assert_still_serves,
    check,
    expected,
    greedy,
    oracle_engine,
    warns_once,
)
from tests.helpers.fakes import OracleModel

SHARED = list(range(20, 32))
WORKLOAD = {"a": [*SHARED, 1], "b": [*SHARED, 2, 3], "c": [7, 8, 9], "n=3": [4, 5, 6, 7, 8, 9]}
KINDS = sorted(EVENT_TYPES.keys() - {"engine_started", "pool_resized", "parameters_changed"})
KINDS.remove("requeued")  # a step has to fail for it


def busy_engine(**options: Any) -> ContinuousEngine:
    """Small enough that the workload below is preempted, evicted, shared and copied."""
    return oracle_engine(num_blocks=11, max_num_batched_tokens=16, **options)


def add_workload(engine: ContinuousEngine) -> None:
    for name, prompt in WORKLOAD.items():
        engine.add_request(prompt, greedy(8, n=3 if name == "n=3" else 1), request_id=name)


def serve(engine: ContinuousEngine, collected: Collected | None = None) -> Collected:
    collected = collected or Collected()
    for _ in range(300):
        if not engine.has_unfinished:
            return collected
        collected.take(engine.step())
        check(engine)
    raise AssertionError("it never ends")


def assert_served(collected: Collected, *, but: str | None = None) -> None:
    for name, prompt in WORKLOAD.items():
        if name != but:
            for c in collected.final[name].completions:
                assert c.token_ids == expected(prompt, 8)


def test_the_workload_shows_every_kind_of_event() -> None:
    engine = busy_engine()
    add_workload(engine)
    assert_served(serve(engine))
    missing = [k for k in KINDS if not engine.log.of_kind(k)]
    assert set(missing) <= {"aborted"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [False, True])
def test_a_listener_that_raises_is_removed_and_everything_goes_on(kind: str, strict: bool) -> None:
    """Also where the user has turned warnings into errors."""
    engine = busy_engine()
    seen: list[str] = []

    def raises(event: Any) -> None:
        seen.append(event.kind)
        if event.kind == kind:
            raise ValueError("a bug in the callback")

    engine.log.subscribe(raises)
    after: list[str] = []
    engine.log.subscribe(lambda event: after.append(event.kind))

    def act() -> Collected:
        collected = Collected()
        add_workload(engine)
        if kind == "aborted":
            collected.take(engine.step())
            engine.abort("c")
        return serve(engine, collected)

    if strict:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            collected = act()
    else:
        collected = warns_once(act)
    assert_served(collected, but="c" if kind == "aborted" else None)
    assert seen.count(kind) == 1
    assert seen[-1] == kind
    assert after == [e.kind for e in engine.log][1:]
    assert_idle(engine)


class Aborts:
    """Aborts one request at the n-th event about it (or about nothing in particular)."""

    def __init__(self, engine: ContinuousEngine, request_id: str, at: int) -> None:
        self.engine, self.request_id, self.at = engine, request_id, at
        self.seen = 0
        self.kind = ""

    def __call__(self, event: Any) -> None:
        about = getattr(event, "request_id", self.request_id)
        if about.split("#")[0] != self.request_id or event.kind == "queued":
            return
        self.seen += 1
        if self.seen == self.at and self.request_id in self.engine._users:
            self.kind = event.kind
            if not self.engine._users[self.request_id].is_finished:
                self.engine.abort(self.request_id)


@pytest.mark.parametrize("request_id", ["a", "b", "n=3"])
def test_a_listener_may_abort_at_any_event(request_id: str) -> None:
    kinds = set()
    for at in range(1, 400):
        engine = busy_engine()
        replayed = EngineState()
        for event in engine.log:
            reduce(replayed, event)
        aborts = Aborts(engine, request_id, at)
        add_workload(engine)
        unsubscribe = engine.log.subscribe(aborts)
        collected = serve(engine)
        unsubscribe()
        if aborts.seen < at:
            break
        kinds.add(aborts.kind)
        assert_served(collected, but=request_id)
        assert_idle(engine)
        last = collected.final[request_id]
        for c in last.completions:
            assert c.token_ids == expected(WORKLOAD[request_id], 8)[: len(c.token_ids)]
    else:
        raise AssertionError("it never ends")
    assert {"admitted", "allocated", "scheduled", "token", "step_began"} <= kinds
    assert "preempted" in kinds or request_id != "n=3"


@pytest.mark.parametrize("failing", [1, 2, 4])
def test_a_listener_may_abort_while_a_step_is_rolled_back(failing: int) -> None:
    for at in range(1, 60):
        model = OracleModel()
        model.fail_at = {failing}
        engine = oracle_engine(model, num_blocks=11, max_num_batched_tokens=16)
        add_workload(engine)
        aborts = Aborts(engine, "b", at)
        engine.log.subscribe(aborts)
        collected = Collected()
        while engine.has_unfinished:
            try:
                collected.take(engine.step())
            except RuntimeError as error:
                assert "as planned" in str(error)
            check(engine)
        if aborts.seen < at:
            break
        assert_served(collected, but="b")
        assert_idle(engine)


def test_every_listener_sees_the_events_in_the_order_of_the_log() -> None:
    engine = busy_engine()

    def abort(event: Any) -> None:
        if event.kind == "allocated" and event.request_id == "b":
            engine.abort("b")

    engine.log.subscribe(abort)
    seen: list[Any] = list(engine.log)
    engine.log.subscribe(seen.append)
    add_workload(engine)
    serve(engine)
    assert seen == list(engine.log)
    assert forget_finished(replay(seen)) == engine.snapshot()


@pytest.mark.parametrize(
    "kind", ["step_began", "scheduled", "allocated", "token", "finished", "step_ended"]
)
def test_a_listener_may_add_requests(kind: str) -> None:
    engine = busy_engine()
    added = []

    def add(event: Any) -> None:
        if event.kind == kind and len(added) < 3:
            added.append(engine.add_request([40, 41, len(added)], greedy(5)))

    engine.log.subscribe(add)
    add_workload(engine)
    collected = serve(engine)
    assert_served(collected)
    assert len(added) == 3
    for k, name in enumerate(added):
        assert collected.final[name].token_ids == expected([40, 41, k], 5)
    assert_idle(engine)


@pytest.mark.parametrize("kind", ["step_began", "scheduled", "token", "step_ended"])
@pytest.mark.parametrize("call", ["step", "generate", "resize_pool"])
def test_a_step_inside_a_step_is_refused(kind: str, call: str) -> None:
    engine = busy_engine()
    errors: list[Exception] = []
    calls = {
        "step": engine.step,
        "generate": lambda: engine.generate([1, 2], greedy(2)),
        "resize_pool": lambda: engine.resize_pool(10),
    }

    def nest(event: Any) -> None:
        if event.kind == kind and not errors:
            try:
                calls[call]()
            except PagedEngineError as error:
                errors.append(error)

    engine.log.subscribe(nest)
    add_workload(engine)
    collected = Collected(from_the_start=False)
    while engine.has_unfinished:
        collected.take([o for o in engine.step() if o.request_id in WORKLOAD])
        check(engine)
    assert_served(collected)
    assert len(errors) == 1
    assert "inside a step" in str(errors[0])
    assert_idle(engine)
    assert_still_serves(engine)


def test_a_listener_may_change_the_limits() -> None:
    engine = busy_engine()

    def change(event: Any) -> None:
        if event.kind in ("scheduled", "token", "step_began"):
            engine.set_limits(max_num_seqs=1 + event.step % 3)

    engine.log.subscribe(change)
    add_workload(engine)
    assert_served(serve(engine))


def test_an_exit_raised_by_a_listener_reaches_the_user_and_harms_no_request() -> None:
    """What is no Exception, such as SystemExit, is not the engine's to swallow."""
    for at in range(1, 200, 4):
        engine = busy_engine()
        add_workload(engine)
        seen = 0

        def leave(event: Any, at: int = at) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                raise SystemExit

        engine.log.subscribe(leave)
        collected = Collected()
        while engine.has_unfinished:
            try:
                collected.take(engine.step())
            except SystemExit:
                check(engine)
        assert_served(collected)
        if seen < at:
            break


def test_unsubscribing_ends_it_and_may_be_done_twice() -> None:
    log = EventLog()
    seen: list[Any] = []
    unsubscribe = log.subscribe(seen.append)
    engine = busy_engine()
    for event in engine.log:
        log.append(event)
    unsubscribe()
    unsubscribe()
    for event in engine.log:
        log.append(event)
    assert len(seen) == 1


@pytest.mark.parametrize("max_events", [1, 2, 7, 50])
def test_a_short_log_still_tells_the_state(max_events: int) -> None:
    engine = busy_engine(max_events=max_events)
    add_workload(engine)
    collected = Collected()
    while engine.has_unfinished:
        collected.take(engine.step())
        recorder = engine.core.recorder
        assert recorder is not None
        assert len(engine.log) <= max_events
        told = forget_finished(replay(engine.log, deepcopy(recorder.base)))
        assert told == engine.snapshot()
        # what is over is forgotten, so that the base does not grow with the run
        assert len(recorder.base.requests) <= len(WORKLOAD) + 2
    assert_served(collected)
    assert engine.log.num_dropped > 0


def test_times_in_the_log_never_go_back() -> None:
    """Whatever ends in the midst of a step, others get their tokens after it."""
    ticks = iter(range(100_000))
    engine = oracle_engine(clock=lambda: float(next(ticks)), num_blocks=12)
    for number in range(5):
        engine.add_request([number, 7, 8], greedy(2 + 3 * number))
    engine.step()
    engine.resize_pool(8)
    engine.abort("request-4")
    while engine.has_unfinished:
        engine.step()
    times = [event.time for event in engine.log]
    assert times == sorted(times)
    assert engine.log.of_kind("finished") and engine.log.of_kind("aborted")
