"""SIGINT waits until a change of state is whole, and then has its usual effect."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from paged_engine import interrupts
from paged_engine.interrupts import deferred_interrupt


@pytest.fixture(autouse=True)
def python_handler() -> Iterator[None]:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_an_interrupt_waits_for_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_several_interrupts_are_one() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_the_outermost_decides_when() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
        done.append("after the inner one")
    assert done == ["after the inner one"]


def test_without_an_interrupt_nothing_happens() -> None:
    with deferred_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_passes_and_the_handler_is_back() -> None:
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_during_an_error_comes_with_the_error_as_its_context() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_a_handler_of_the_user_is_called_afterwards() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        assert calls == []
    assert calls == [signal.SIGINT]


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no death by signal")
def test_the_systems_own_handler_still_ends_the_process() -> None:
    code = """
import signal
from paged_engine.interrupts import deferred_interrupt
signal.signal(signal.SIGINT, signal.SIG_DFL)
with deferred_interrupt():
    signal.raise_signal(signal.SIGINT)
    print("inside", flush=True)
print("outside", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "inside\n"
    assert done.returncode == -signal.SIGINT


def test_a_handler_that_python_did_not_install_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def untouchable(*args: Any) -> Any:
        raise AssertionError("it could not be put back")

    monkeypatch.setattr(interrupts.signal, "getsignal", lambda number: None)
    monkeypatch.setattr(interrupts.signal, "signal", untouchable)
    with deferred_interrupt():
        pass
    monkeypatch.undo()


def test_other_threads_have_nothing_to_defer() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with deferred_interrupt():
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
