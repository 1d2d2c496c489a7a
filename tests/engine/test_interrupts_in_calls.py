"""Ctrl-C at any moment reaches the user, and tears nothing in two."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paged_engine import ContinuousEngine
from tests.engine.engine_helpers import (
    Collected,
    assert_idle,
    assert_still_serves,
    check,
    expected,
    greedy,
    oracle_engine,
)

OTHERS = {"x": [20, 21, 22, 23, 24], "y": [30]}
OWN = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [1, 2, 3, 4, 5]]
NUM_TOKENS = 5


class Moments:
    """Counts the moments at which Python may run a signal handler, and sends SIGINT at one.

    That is when a function is entered or left, in the files that could be torn.
    """

    # What is returned is the caller's: nobody can save it.  And Python has no signal come
    # between the two halves of a `yield`.
    TOO_LATE = frozenset(
        (name, "return") for name in ("step", "add_request", "_submit", "_stream", "stream")
    )

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.seen = 0
        self.where = ""

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        name = frame.f_code.co_filename
        if "paged_engine" not in name and not name.endswith("contextlib.py"):
            return
        code = frame.f_code.co_name
        if "/tests/" in name or code == "<genexpr>":  # Python swallows what closing one raises
            return
        if (code, event) in self.TOO_LATE and name.endswith("engine.py"):
            return
        self.seen += 1
        if self.seen == self.at:
            self.where = f"{name}:{frame.f_lineno} {event} {frame.f_code.co_name}"
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def interrupted(moments: Moments, call: Callable[..., Any], *args: Any) -> bool:
    """Whether `call` was ended by the interrupt that came at its moment."""
    sys.setprofile(moments)
    try:
        call(*args)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def _generate(engine: ContinuousEngine) -> None:
    engine.generate(OWN, greedy(3))


def _stream(engine: ContinuousEngine) -> None:
    for _ in engine.stream(OWN[0], greedy(4)):
        pass


def _add(engine: ContinuousEngine) -> None:
    for prompt in OWN:
        request_id = engine.add_request(prompt, greedy(3, n=2))
        moments = sys.getprofile()
        sys.setprofile(None)
        engine.abort(request_id)
        sys.setprofile(moments)


def _serve(call: Callable[[ContinuousEngine], None], at: int | None) -> Moments:
    """Others are in flight; `call` is interrupted; then the others are served to their end."""
    engine = oracle_engine(num_blocks=7, max_num_batched_tokens=8)
    collected = Collected()
    for name, prompt in OTHERS.items():
        engine.add_request(prompt, greedy(NUM_TOKENS, n=2 if name == "x" else 1), request_id=name)
    collected.take(engine.step())
    moments = Moments(at)
    was_interrupted = interrupted(moments, call, engine)
    assert was_interrupted == (at is not None and moments.seen >= at), moments.where
    names = {sample.user.request_id for sample in engine.core.samples.values()}
    assert names <= set(OTHERS), f"left behind after {moments.where}"
    names = {user.request_id for user in engine._users.values() if not user.is_finished}
    assert names <= set(OTHERS), f"left behind after {moments.where}"
    check(engine)
    while engine.has_unfinished:
        collected.take(o for o in engine.step() if o.request_id in OTHERS)
    ends = [e.step for e in engine.log.of_kind("step_ended")]
    assert ends == [e.step for e in engine.log.of_kind("step_began")], f"after {moments.where}"
    for name, prompt in OTHERS.items():
        for c in collected.final[name].completions:
            assert c.token_ids == expected(prompt, NUM_TOKENS), f"after {moments.where}"
    assert_idle(engine)
    return moments


@pytest.mark.parametrize("call", [_generate, _stream, _add])
def test_an_interrupt_at_any_moment_ends_only_the_call(
    call: Callable[[ContinuousEngine], None],
) -> None:
    total = _serve(call, None).seen
    assert total > 100
    # The beginning densely (the requests come in), then in strides that miss no kind of moment.
    moments = [*range(1, 200, 7), *range(200, total + 1, 89)]
    for at in moments:
        _serve(call, at)


@pytest.mark.slow
@pytest.mark.parametrize("call", [_generate, _stream])
def test_an_interrupt_at_many_more_moments_ends_only_the_call(
    call: Callable[[ContinuousEngine], None],
) -> None:
    total = _serve(call, None).seen
    for at in range(3, total + 1, 41):
        _serve(call, at)


def test_an_interrupted_step_is_taken_again_and_loses_no_output() -> None:
    """A user's own loop around `step`: only what `step` returned in vain may be missing."""
    at = 0
    while True:
        at += 31
        engine = oracle_engine(num_blocks=9)
        for name, prompt in OTHERS.items():
            engine.add_request(prompt, greedy(5), request_id=name)
        final: dict[str, Any] = {}
        moments = Moments(at)

        def take(engine: ContinuousEngine = engine, final: dict[str, Any] = final) -> None:
            final |= {o.request_id: o for o in engine.step()}

        while engine.has_unfinished:
            if interrupted(moments, take):
                check(engine)
        for name, prompt in OTHERS.items():
            assert final[name].token_ids == expected(prompt, 5), f"after {moments.where}"
            assert final[name].finished
        assert_idle(engine)
        if moments.seen < at:
            break


def test_a_real_signal_at_random_moments() -> None:
    """Sent by another thread while the main one computes, as the kernel does on Ctrl-C."""
    rng = random.Random(1)
    interrupts = 0
    engine = oracle_engine()
    begin = time.perf_counter()
    engine.generate(OWN, greedy(50))
    usual = time.perf_counter() - begin
    for _ in range(25):
        engine = oracle_engine()
        collected = Collected()
        for name, prompt in OTHERS.items():
            engine.add_request(prompt, greedy(60), request_id=name)
        collected.take(engine.step())
        delay = rng.uniform(0, usual)

        def send(delay: float = delay) -> None:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        in_call = False
        try:
            sender.start()
            in_call = True
            engine.generate(OWN, greedy(50))
            in_call = False
            sender.join()
            time.sleep(1)  # it must arrive; the interrupt cuts this short
            raise AssertionError("the interrupt was swallowed")
        except KeyboardInterrupt:
            interrupts += in_call
        names = {sample.user.request_id for sample in engine.core.samples.values()}
        assert names <= set(OTHERS)  # who of them has ended is handed out by the next step
        check(engine)
        while engine.has_unfinished:
            collected.take(engine.step())
        for name, prompt in OTHERS.items():
            assert collected.final[name].token_ids == expected(prompt, 60)
        assert_idle(engine)
        assert_still_serves(engine)
    assert interrupts >= 5
