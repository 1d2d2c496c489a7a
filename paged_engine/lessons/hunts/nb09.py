"""The bug hunts of notebook 09: three faults that a replay of the events shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paged_engine.block_pool import BlockPool
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.request import Request, RequestStatus
from paged_engine.scheduler import Scheduler

_sound_release = Scheduler._release
_sound_to_waiting = Scheduler._to_waiting


def _release(self: Scheduler, request: Request, *, discard: bool = False) -> list[int]:
    """An aborted request gives back the blocks that it computed, and not those it shares."""
    if request.status is not RequestStatus.FINISHED_ABORTED:
        return _sound_release(self, request, discard=discard)
    num_hits = request.num_cached_tokens // self.block_size
    kept, request.block_table = request.block_table[:num_hits], request.block_table[num_hits:]
    unheld = _sound_release(self, request, discard=discard)
    request.block_table = kept
    return unheld


def _to_waiting(self: Scheduler, request: Request, status: RequestStatus) -> None:
    """Who was preempted stands behind everybody who never was, whoever comes later."""
    if status is RequestStatus.PREEMPTED:
        rank, place = request.queue_key
        request.queue_key = (rank + 1, place)
    _sound_to_waiting(self, request, status)


def _free(self: BlockPool, block_ids: Sequence[int]) -> None:
    """The first who leaves a block ends it for all who read it."""
    for block_id in reversed(block_ids):
        block = self.blocks[block_id]
        if block.ref_cnt:
            block.ref_cnt = 0
            self._return(block)


@contextmanager
def _leak() -> Iterator[None]:
    with replaced(Scheduler, "_release", _release):
        yield


@contextmanager
def _back_of_the_line() -> Iterator[None]:
    with replaced(Scheduler, "_to_waiting", _to_waiting):
        yield


@contextmanager
def _first_who_leaves() -> Iterator[None]:
    with replaced(BlockPool, "free", _free):
        yield


hunt(
    Hunt(
        "09",
        inject=_leak,
        suspects={
            "A": "A finished request gives back all its blocks but the last.",
            "B": "An aborted request keeps the blocks that it shared with others.",
            "C": "A smaller pool withholds blocks, and a larger one does not return them.",
            "D": "A preempted request is admitted again without giving up its old blocks.",
        },
        guilty="B",
        reasons={
            "A": "Click the blocks that stay at the end: their owner was aborted, and whoever "
            "finished holds nothing.",
            "B": "Its own block is given back, and the next who needs one takes it; those at the "
            "start of its table are not: nobody counts that reference down any more.",
            "C": "A withheld block is free and not used; those that stay have an owner, and the "
            "log says that the pool has its old size again.",
            "D": "Go to the frame of the preemption: all of its blocks turn free there.",
        },
        source="xLLM's issue 828: with its prefix cache on, blocks of requests that had ended were "
        "still counted as used, until the server refused everybody",
    )
)
hunt(
    Hunt(
        "09b",
        inject=_back_of_the_line,
        suspects={
            "A": "The blocks of the preempted request leaked, so there is no room for it.",
            "B": "A preempted request is forgotten: it stands in no line any more.",
            "C": "A preempted request stands behind everybody who was never preempted.",
            "D": "It waits for a seat: max_num_seqs are running all the time.",
        },
        guilty="C",
        reasons={
            "A": "In the frame of the preemption its blocks turn free, and later others get them.",
            "B": "It is admitted in the end, once nobody else waits.",
            "C": "Whoever comes later is admitted first, while it waits with its answer half "
            "written. With newcomers enough it would wait for ever.",
            "D": "Count the lanes that compute while it waits, and hold them against the seats.",
        },
        source="vLLM's issue 41951: with its priority policy, a preempted request lost its place "
        "to requests that had never run",
    )
)
hunt(
    Hunt(
        "09c",
        inject=_first_who_leaves,
        suspects={
            "A": "Two requests with the same beginning share blocks, as they should: no fault.",
            "B": "A block is free for all as soon as the first of those who share it leaves.",
            "C": "The hash of a block stays when it is given to somebody else: a stale hit.",
            "D": "A request writes past the end of its table, into its neighbour's block.",
        },
        guilty="B",
        reasons={
            "A": "They share it by a hit, and then nothing is wrong. But go on: a third request "
            "gets the same block by an allocation, as new, and its beginning is another.",
            "B": "When the first holder left, the count went to zero though the second still "
            "reads the block; so it was handed out as new, and was written over.",
            "C": "In the frame in which the block is handed out anew it is evicted as well, so "
            "nobody can find it under the old hash.",
            "D": "The block stands in the newcomer's table: it was given it, by an allocation.",
        },
        source="Atlas's pull request 373: a block went back to the free list while in use, and to "
        "a second and a third owner",
    )
)
