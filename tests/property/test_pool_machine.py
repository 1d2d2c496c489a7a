"""The block pool against a naive model of it: lists and dicts, searched from end to end."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_engine.block_pool import BlockPool, chained_hash
from paged_engine.errors import BlockPoolError, InvalidConfigError
from tests.helpers.oracles import check_pool, constant_hash, modulo_three_hash

Prefix = tuple[int, ...]

HASHES = {"chained": chained_hash, "constant": constant_hash, "mod 3": modulo_three_hash}


class NaivePool:
    """What the pool promises, without a thought for speed.

    `content` says which prefix a block holds, in the model's eyes for as long as its data
    lasts; the pool may forget a content (two prefixes with one hash), never invent one.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_usable = num_blocks
        self.count = [0] * num_blocks
        self.content: dict[int, Prefix] = {}

    def num_used(self) -> int:
        return sum(c > 0 for c in self.count)

    def num_free(self) -> int:
        return max(0, self.num_usable - self.num_used())


class PoolLife(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, 10),
        block_size=st.integers(1, 3),
        caching=st.sampled_from([True, True, False]),
        hash_name=st.sampled_from(sorted(HASHES)),
    )
    def start(self, num_blocks: int, block_size: int, caching: bool, hash_name: str) -> None:
        self.pool = BlockPool(
            num_blocks,
            block_size,
            enable_prefix_caching=caching,
            hash_function=HASHES[hash_name],
        )
        self.block_size = block_size
        self.naive = NaivePool(num_blocks)
        self.tables: list[tuple[list[int], list[int]]] = []  # blocks, and the tokens in them
        self.is_exact = hash_name == "chained"

    def state(self) -> object:
        pool = self.pool
        blocks = [(b.ref_cnt, b.prefix) for b in pool.blocks]
        return blocks, list(pool._free), list(pool._withheld), dict(pool._index)

    # ------------------------------------------------------------------ what holders do

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), more=st.integers(0, 3))
    def take_a_table(self, tokens: list[int], more: int) -> None:
        before = self.state()
        hits = self.pool.match_prefix(tokens)
        assert self.state() == before, "a question changed the pool"
        size = self.block_size
        assert len(hits) * size < len(tokens), "a prefix hit leaves nothing to compute"
        for i, block_id in enumerate(hits):
            prefix = tuple(tokens[: (i + 1) * size])
            assert self.naive.content.get(block_id) == prefix, "a hit on something else"
        needed = -(-len(tokens) // size) - len(hits) + more
        pinned = sum(self.naive.count[i] == 0 for i in hits)
        assert self.pool.num_free_after(hits) == self.naive.num_free() - pinned
        new = self.pool.allocate(needed, hits)
        if needed > self.naive.num_free() - pinned:
            assert new is None and self.state() == before, "all or nothing"
            return
        assert new is not None and len(set(new)) == len(new) == needed
        assert all(self.naive.count[i] == 0 for i in new), "a block is given out twice"
        assert not set(new) & set(hits)
        for block_id in new:
            self.naive.content.pop(block_id, None)
        for block_id in [*hits, *new]:
            self.naive.count[block_id] += 1
        self.tables.append(([*hits, *new], tokens))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def compute_and_publish(self, data: st.DataObject) -> None:
        table, tokens = data.draw(st.sampled_from(self.tables))
        num_computed = data.draw(st.integers(0, len(tokens)))
        self.pool.publish(table, tokens, num_computed)
        for i in range(num_computed // self.block_size):
            prefix = tuple(tokens[: (i + 1) * self.block_size])
            assert self.naive.content.get(table[i], prefix) == prefix
            self.naive.content[table[i]] = prefix
        if self.is_exact and self.pool.enable_prefix_caching and self.all_reachable(table):
            found = self.pool.match_prefix([*tokens[:num_computed], 0])
            assert len(found) >= num_computed // self.block_size, "published, and not found"

    def all_reachable(self, table: list[int]) -> bool:
        """Whether no part of the chain was evicted meanwhile."""
        entries = set(map(id, self.pool._index.values()))
        known = [self.pool.blocks[i].prefix for i in table]
        return all(entry is None or id(entry) in entries for entry in known)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), discard=st.booleans())
    def give_back(self, data: st.DataObject, discard: bool) -> None:
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        for block_id in table:
            self.naive.count[block_id] -= 1
        unheld = [i for i in table if self.naive.count[i] == 0]
        if discard:
            assert self.pool.discard(table) == unheld
            for block_id in unheld:
                assert self.pool.blocks[block_id].prefix is None, "it can still be found"
        else:
            self.pool.free(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), how=st.sampled_from(["twice", "once too often", "foreign", "negative"]))
    def give_back_wrongly(self, data: st.DataObject, how: str) -> None:
        table, _ = data.draw(st.sampled_from(self.tables))
        held = self.naive.count[table[0]]
        idle = [i for i, count in enumerate(self.naive.count) if count == 0]
        wrong = {
            "twice": [*table, *[table[0]] * held],
            "once too often": [*table, *idle[:1]] if idle else [table[0]] * (held + 1),
            "foreign": [*table, self.pool.num_blocks],
            "negative": [*table, -1],
        }[how]
        before = self.state()
        with pytest.raises(BlockPoolError):
            self.pool.free(wrong)
        with pytest.raises(BlockPoolError):
            self.pool.discard(wrong)
        assert self.state() == before, "a refused free changed the pool"

    @rule(num_usable=st.integers(-1, 12))
    def resize(self, num_usable: int) -> None:
        if not 1 <= num_usable <= self.pool.num_blocks:
            before = self.state()
            with pytest.raises(InvalidConfigError):
                self.pool.resize(num_usable)
            assert self.state() == before
            return
        self.pool.resize(num_usable)
        self.naive.num_usable = num_usable

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def the_pool_agrees_with_the_naive_one(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool, naive = self.pool, self.naive
        check_pool(pool, [table for table, _ in self.tables])
        pool.check_invariants([table for table, _ in self.tables])
        assert [b.ref_cnt for b in pool.blocks] == naive.count
        assert (pool.num_used, pool.num_free) == (naive.num_used(), naive.num_free())
        for entry in pool._index.values():
            assert entry.block_id in naive.content

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for table, _ in self.tables:
            self.pool.free(table)
        assert self.pool.num_used == 0
        self.pool.resize(self.pool.num_blocks)
        everything = self.pool.allocate(self.pool.num_blocks)
        assert everything is not None and sorted(everything) == list(range(self.pool.num_blocks))
        assert not self.pool._index, "a block that is in use for something else can be found"


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(stateful_step_count=40)
