"""The bug hunt of notebook 06: two requests that write into one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.protocols import SchedulerOutput
from paged_engine.request import Request
from paged_engine.scheduler import Scheduler

_sound_preempt = Scheduler._preempt


def _preempt(self: Scheduler, request: Request, output: SchedulerOutput) -> None:
    """As the package's, but the table goes on naming the blocks that were given back."""
    table = list(request.block_table)
    _sound_preempt(self, request, output)
    request.block_table.extend(table)


@contextmanager
def _inject() -> Iterator[None]:
    with replaced(Scheduler, "_preempt", _preempt):
        yield


hunt(
    Hunt(
        "06",
        inject=_inject,
        suspects={
            "A": "`allocate` hands out blocks and leaves them in the free list.",
            "B": "A request that finishes gives its blocks back, and once more in the next step.",
            "C": "A preempted request gives its blocks back and keeps its table; its abort gives "
            "them back again.",
            "D": "Requests that begin with the same tokens share a block, as they are meant to.",
        },
        guilty="C",
        reasons={
            "A": "Then the very next request would get the same blocks. The first four, and "
            "those who grow, all get different ones.",
            "B": "Nobody has finished when the block gets its second owner.",
            "C": "The pool cannot refuse: when the abort comes the blocks are in use again, by "
            "somebody else. It takes them from under that request and hands them out anew.",
            "D": "Prefix caching is off, the prompts differ, and the log has no `hit` event.",
        },
        source="vLLM's issue 1556 is such an error, raised at whoever came last",
    )
)
