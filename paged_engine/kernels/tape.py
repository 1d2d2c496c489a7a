"""Calls of kernels that are made again, without Python in between.

A decode step calls some three hundred kernels, and with one request in the batch each takes some
microseconds: as long as Python needs to come to the next.  But the next step makes the same calls,
on the same memory.  So what one step called is kept, and later steps change a few numbers in it and
let C++ run down the list.  It is what CUDA graphs are for on a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeVar

Call = TypeVar("Call", bound=ctypes.Structure)


class _Entry(ctypes.Structure):
    """`struct Call` of calls.cpp, field by field."""

    _fields_ = [("kernel", ctypes.c_void_p), ("argument", ctypes.c_void_p)]


class Tape:
    """Calls in the order in which they were made.

    The memory that they name is somebody else's, and has to be there when they are made again.

    Args:
        run_calls: The function of calls.cpp.
        num_threads: That make the calls together: as many as each of them says.
    """

    def __init__(self, run_calls: Any, num_threads: int) -> None:
        self._run_calls = run_calls
        self._num_threads = num_threads
        self._functions: list[Any] = []
        self._calls: list[ctypes.Structure] = []
        self._entries: Any = None

    def add(self, function: Any, call: ctypes.Structure) -> None:
        """Put a call at the end."""
        self._functions.append(function)
        self._calls.append(call)

    def calls(self, kind: type[Call]) -> list[Call]:
        """Those of one kind of kernel; what is changed in them holds from then on."""
        return [call for call in self._calls if isinstance(call, kind)]

    def replay(self) -> int:
        """Make all calls again.

        Returns:
            0, or what the first kernel returned that did not return that; none came after it.
        """
        if self._entries is None:
            self._entries = (_Entry * len(self._calls))()
            made = zip(self._entries, self._functions, self._calls, strict=True)
            for entry, function, call in made:
                entry.kernel = ctypes.cast(function, ctypes.c_void_p)
                entry.argument = ctypes.addressof(call)
        list_of_calls = ctypes.addressof(self._entries)
        return int(self._run_calls(list_of_calls, len(self._entries), self._num_threads))
