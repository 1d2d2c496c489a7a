"""The bug hunt of notebook 08: a server that lets in fewer and fewer, and then nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.protocols import SchedulerOutput
from paged_engine.request import Request
from paged_engine.scheduler import Scheduler

_sound_try_admit = Scheduler._try_admit


def _try_admit(
    self: Scheduler, request: Request, budget: int, reserved: int, output: SchedulerOutput
) -> int:
    """As the package's, but a block is taken first, and kept by nobody if there is no room."""
    first = self.pool.allocate(1)
    if first is None:
        return 0
    missing = self._blocks_for(request.num_tokens + 1)
    if self.running and self.pool.num_free + 1 < missing + reserved:
        return 0
    self.pool.free(first)
    return _sound_try_admit(self, request, budget, reserved, output)


@contextmanager
def _inject() -> Iterator[None]:
    with replaced(Scheduler, "_try_admit", _try_admit):
        yield


hunt(
    Hunt(
        "08",
        inject=_inject,
        suspects={
            "A": "Whoever finishes keeps its last block, which is only part full.",
            "B": "Admission takes a block, sees that there is no room, and does not give it back.",
            "C": "An aborted request gives nothing back.",
            "D": "Whoever decodes is handed a new block in every step.",
        },
        guilty="B",
        reasons={
            "A": "Then blocks would be lost in the steps in which somebody finishes. They are lost "
            "in between.",
            "B": "A block is lost in every step in which somebody waits for blocks, and in no "
            "other; no table ever named it, so the log has no event of it.",
            "C": "Nobody was aborted.",
            "D": "Such blocks would stand in a table and in an `allocated` event. The tables are "
            "as long as their tokens need.",
        },
        source="waiting requests that hold what they cannot use yet have stopped vLLM: two of "
        "them, with all blocks between them, in its pull request 57104",
    )
)
