"""How many of the machine's cores nobody uses: on those a page draws without slowing the engine."""

from __future__ import annotations

import time

import psutil

SHORTEST = 0.25  # seconds that are looked at; the system counts in hundredths


class IdleCores:
    """Counts the cores that were idle while an engine played, whole ones.

    They are the machine's, and not those that this process leaves to others: a neighbour takes
    some too, and an engine that computes on a GPU leaves nearly all.

    Attributes:
        count: As of the last look; 0 until there was one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.begin()

    def begin(self) -> None:
        """Count from now on: what was before, perhaps a pause, says nothing."""
        self._then, self._idle = time.monotonic(), psutil.cpu_times().idle

    def look(self) -> None:
        """Count those that were idle since the last look, unless that was just now."""
        now, idle = time.monotonic(), psutil.cpu_times().idle
        if now - self._then < SHORTEST:
            return
        # what is left of one counts as one: the page that draws on it is no reason to rest
        self.count = int((idle - self._idle) / (now - self._then) + 0.6)
        self._then, self._idle = now, idle
