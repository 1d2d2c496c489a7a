"""What must hold after every step, told without the package's own checks.

`BlockPool.check_invariants` and `Scheduler.check_invariants` are code too: a fault in them would
hide others.  So the same rules stand here once more, in other words.  Nothing here needs
torch to be imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from paged_engine.block_pool import BlockPool, CachedPrefix
from paged_engine.events import FORMAT_VERSION, EngineStarted, Event, from_json, to_json
from paged_engine.replay import EngineState, forget_finished, reduce
from paged_engine.request import Request, RequestStatus
from paged_engine.scheduler import Scheduler, SchedulerOutput

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.kv_cache import PagedKVCache


def constant_hash(parent_hash: int, tokens: tuple[int, ...]) -> int:
    """The worst of all hash functions."""
    return 7


def modulo_three_hash(parent_hash: int, tokens: tuple[int, ...]) -> int:
    """Hashes with many collisions, also between a prefix and its own continuation."""
    return (parent_hash + sum(tokens)) % 3


def prefix_of(entry: CachedPrefix) -> list[int]:
    """All tokens that an entry of the prefix index stands for."""
    parts: list[tuple[int, ...]] = []
    walk: CachedPrefix | None = entry
    while walk is not None:
        parts.append(walk.tokens)
        walk = walk.parent
    return [token for part in reversed(parts) for token in part]


def check_pool(pool: BlockPool, tables: Iterable[Sequence[int]]) -> None:
    """Every block is in one place, is counted right, and is found by its content alone."""
    held = Counter(block_id for table in tables for block_id in table)
    free, withheld = list(pool._free), list(pool._withheld)
    used = [b.block_id for b in pool.blocks if b.ref_cnt > 0]
    assert sorted([*free, *withheld, *used]) == list(range(pool.num_blocks)), "a block is lost"
    assert {b.block_id: b.ref_cnt for b in pool.blocks if b.ref_cnt} == dict(held), "ref_cnt"
    assert pool.num_free == len(free) and pool.num_used == len(used)
    spare = pool.num_blocks - pool.num_usable
    assert len(withheld) == min(spare, pool.num_blocks - len(used)), "withheld"
    assert pool.num_excess == max(0, len(used) - pool.num_usable)
    by_block = {entry.block_id: (key, entry) for key, entry in pool._index.items()}
    assert len(by_block) == len(pool._index), "two prefixes in one block"
    for block in pool.blocks:
        key, entry = by_block.get(block.block_id, (None, None))
        assert block.is_cached == (entry is not None), f"{block} and the index disagree"
        assert entry is None or (block.prefix is entry and entry.block_hash == key)
        assert block.ref_cnt or block.prefix is None or block.is_cached, "an idle block remembers"
    assert not any(pool.blocks[i].is_cached for i in withheld), "a withheld block can be found"
    of_use = [pool.blocks[i].is_cached for i in free]
    assert of_use == sorted(of_use), "a cached block would be taken before an empty one"


def check_content(pool: BlockPool, cache: PagedKVCache) -> None:
    """What the prefix index promises is in the cache (that of an `OracleModel`)."""
    from tests.helpers.fakes import chain

    for entry in pool._index.values():
        tokens, end, expected = prefix_of(entry), 0, []
        for position, token_id in enumerate(tokens):
            before, end = end, chain(end, token_id, position)
            expected.append([position + 1, before, end])
        assert cache.k[0, entry.block_id, 0].tolist() == expected[-pool.block_size :], (
            f"block {entry.block_id} is published but does not hold its tokens"
        )


class WatchedScheduler(Scheduler):
    """The package's scheduler, each of whose decisions is checked."""

    may_idle = False  # after a smaller limit a step may do nothing but take blocks away

    def schedule(self) -> SchedulerOutput:
        ran_before = list(self.running)
        waited_before = len(self.waiting)
        output = super().schedule()
        lost = set(output.preempted)
        scheduled = output.scheduled
        assert all(1 <= n <= r.num_tokens - r.num_computed_tokens for r, n in scheduled.items())
        assert all(r.status is RequestStatus.RUNNING for r in scheduled)
        assert all(r in self.running for r in scheduled)
        assert sum(scheduled.values()) <= self.max_num_batched_tokens, "over the budget"
        assert len(self.running) <= self.max_num_seqs, "over max_num_seqs"
        assert all(r.status is RequestStatus.PREEMPTED and not r.block_table for r in lost)
        assert len(lost) == len(output.preempted), "preempted twice"
        stayed = [r for r in ran_before if r not in lost]
        if len(stayed) <= self.max_num_batched_tokens:
            assert all(r in scheduled for r in stayed), "a running request was passed over"
        if ran_before or waited_before:
            assert scheduled or self.may_idle, "an idle step while there is work"
        self.may_idle = False
        for request, num_tokens in scheduled.items():
            slots = len(request.block_table) * self.block_size
            assert request.num_computed_tokens + num_tokens <= slots, "too few blocks"
        check_written_once(output, self.block_size)
        return output


def check_written_once(output: SchedulerOutput, block_size: int) -> None:
    """No two requests write to the same block, and nobody writes where another one reads."""
    written: set[int] = set()
    read: Counter[int] = Counter()
    for request, num_tokens in output.scheduled.items():
        start, end = request.num_computed_tokens, request.num_computed_tokens + num_tokens
        touched = set(request.block_table[start // block_size : -(-end // block_size)])
        assert not touched & written, "two requests write to one block"
        written |= touched
        read.update(request.block_table[: -(-end // block_size)])
    assert all(read[block_id] == 1 for block_id in written), "a shared block is written to"


class Replayer:
    """Follows the log of an engine event by event, from the lines that it would be saved as."""

    def __init__(self, engine: ContinuousEngine) -> None:
        self.engine = engine
        self.state = EngineState()
        self._new: list[Event] = []
        for event in engine.log:
            self.take(event)
        engine.log.subscribe(self.take)

    def take(self, event: Event) -> None:
        self._new.append(event)

    def check(self) -> None:
        """Up to now the log tells the same state as the engine itself."""
        for event in self._new:
            again = from_json(to_json(event))
            assert again == event
            reduce(self.state, again)
        self._new.clear()
        forget_finished(self.state)
        assert self.state == self.engine.snapshot()


def tables_of(scheduler: Scheduler) -> list[list[int]]:
    return [request.block_table for request in scheduler.requests.values()]


def check_requests(scheduler: Scheduler) -> None:
    """Each request is in the queue that its status says, and holds blocks only if it runs."""
    running, waiting = list(scheduler.running), list(scheduler.waiting)
    everybody: list[Request] = [*running, *waiting]
    assert len(set(everybody)) == len(everybody) == len(scheduler.requests)
    assert {r.request_id: r for r in everybody} == scheduler.requests
    keys = [r.queue_key for r in running]
    assert keys == sorted(keys)
    for request in running:
        assert request.status is RequestStatus.RUNNING
        assert 0 <= request.num_computed_tokens < request.num_tokens
    for request in waiting:
        assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        assert not request.block_table and request.num_computed_tokens == 0


_VALUES: dict[str, Any] = {
    "int": 3,
    "str": 'a "quoted" \u00e9\n\U0001f600',
    "float": 0.1,
    "bool": True,
    "tuple[int, ...]": (1, 2),
    "str | None": None,
}


def example_event(cls: type[Event]) -> Event:
    """An event of this type."""
    values = {f.name: _VALUES[str(f.type)] for f in fields(cls)}
    if cls is EngineStarted:
        values["version"] = FORMAT_VERSION
    return cls(**values)
