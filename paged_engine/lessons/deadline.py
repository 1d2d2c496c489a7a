"""A time limit for code of a reader, which may loop for ever.

Python cannot stop a thread from outside, but it can raise an exception in it between two bytecodes.
That is enough for loops, on every platform and beside a running event loop, where a signal is not.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = 0.2  # seconds after which it is raised again, for who swallowed it


class OutOfTime(BaseException):
    """The code ran longer than it may.  No `except Exception` swallows it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` inside, in this thread, after so many seconds."""
    thread = ctypes.c_ulong(threading.get_ident())
    over = threading.Event()
    lock = threading.Lock()

    def watch() -> None:
        pause = seconds
        while not over.wait(pause):
            with lock:  # so that it is never raised after the end
                if not over.is_set():
                    _raise_in(thread, OutOfTime)
            pause = AGAIN

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        with lock:
            _raise_in(thread, None)  # what was asked for and did not come yet


def _raise_in(thread: ctypes.c_ulong, exception: type[BaseException] | None) -> None:
    wanted = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, wanted)
