"""The block pool, one promise at a time."""

from __future__ import annotations

import pytest

from paged_engine.block_pool import BlockPool, chained_hash
from paged_engine.errors import BlockPoolError, InvalidConfigError, InvariantError
from tests.helpers.oracles import check_pool, constant_hash


def state(pool: BlockPool) -> object:
    blocks = [(b.ref_cnt, b.prefix) for b in pool.blocks]
    return blocks, list(pool._free), list(pool._withheld), dict(pool._index)


def published(pool: BlockPool, tokens: list[int]) -> list[int]:
    """A table that holds `tokens`, computed and published."""
    table = pool.allocate(-(-len(tokens) // pool.block_size))
    assert table is not None
    pool.publish(table, tokens, len(tokens))
    return table


# Taking and giving back ------------------------------------------------------------------------


def test_a_new_pool_hands_out_every_block_once() -> None:
    pool = BlockPool(4, 2)
    assert pool.allocate(3) == [0, 1, 2]
    assert (pool.num_free, pool.num_used) == (1, 3)
    assert pool.allocate(1) == [3]
    assert pool.allocate(1) is None


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(3, 2)
    pool.allocate(2)
    before = state(pool)
    assert pool.allocate(2) is None
    assert state(pool) == before


def test_an_allocation_that_fails_does_not_pin_its_hits() -> None:
    pool = BlockPool(3, 1)
    table = published(pool, [5, 6])
    pool.free(table)
    before = state(pool)
    hits = pool.match_prefix([5, 6, 7])
    assert hits == table
    assert pool.allocate(2, hits) is None  # only one block is left besides the hits
    assert state(pool) == before


def test_nothing_can_be_allocated_from_nothing() -> None:
    pool = BlockPool(1, 1)
    assert pool.allocate(1) == [0]
    assert pool.allocate(0) == []
    with pytest.raises(BlockPoolError, match="-1 blocks"):
        pool.allocate(-1)


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    pool = BlockPool(3, 1)
    table = published(pool, [5, 6])
    assert pool.allocate(0, table) == []
    assert [b.ref_cnt for b in pool.blocks] == [2, 2, 0]
    pool.free(table)
    assert (pool.num_used, pool.num_free) == (2, 1)
    pool.free(table)
    assert (pool.num_used, pool.num_free) == (0, 3)
    check_pool(pool, [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 1, 0], "block 0 was freed 2 times but is held 1 times"),
        ([0, 2], "block 2 was freed 1 times but is held 0 times"),
        ([0, 4], "block 4 is not of this pool; expected 0 to 3"),
        ([0, -1], "block -1 is not of this pool"),
    ],
)
@pytest.mark.parametrize("method", ["free", "discard"])
def test_a_wrong_free_raises_and_changes_nothing(
    method: str, wrong: list[int], message: str
) -> None:
    pool = BlockPool(4, 1)
    published(pool, [5, 6])
    before = state(pool)
    with pytest.raises(BlockPoolError, match=message):
        getattr(pool, method)(wrong)
    assert state(pool) == before


def test_a_table_freed_twice_raises() -> None:
    pool = BlockPool(4, 1)
    table = pool.allocate(2)
    assert table is not None
    pool.free(table)
    with pytest.raises(BlockPoolError, match="double free"):
        pool.free(table)


@pytest.mark.parametrize(("blocks", "size"), [(0, 1), (1, 0), (-1, 4)])
def test_a_pool_of_nothing_is_refused(blocks: int, size: int) -> None:
    with pytest.raises(InvalidConfigError, match="at least 1 of each"):
        BlockPool(blocks, size)


# Order of eviction -----------------------------------------------------------------------------


def test_empty_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(4, 1)
    cached = published(pool, [5])
    plain = pool.allocate(1)
    assert plain is not None
    pool.free(cached)
    pool.free(plain)
    taken = pool.allocate(3)
    assert taken is not None and set(taken) == {1, 2, 3}
    assert pool.match_prefix([5, 6]) == cached


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = BlockPool(3, 1)
    first, second, third = (published(pool, [t]) for t in (5, 6, 7))
    for table in (second, first, third):
        pool.free(table)
    assert pool.allocate(1) == second
    assert pool.match_prefix([6, 0]) == []
    assert pool.allocate(1) == first


def test_using_a_prefix_again_makes_it_young() -> None:
    pool = BlockPool(2, 1)
    old, young = published(pool, [5]), published(pool, [6])
    pool.free(old)
    pool.free(young)
    pool.allocate(0, old)
    pool.free(old)
    assert pool.allocate(1) == young


def test_the_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3, 1)
    table = published(pool, [5, 6, 7])
    pool.free(table)
    assert pool.allocate(1) == [table[2]]
    assert pool.match_prefix([5, 6, 7, 8]) == table[:2]


def test_an_evicted_block_cannot_be_found() -> None:
    pool = BlockPool(1, 1)
    pool.free(published(pool, [5]))
    assert pool.match_prefix([5, 6]) == [0]
    assert pool.allocate(1) == [0]
    assert pool.match_prefix([5, 6]) == []
    check_pool(pool, [[0]])


# Sharing ---------------------------------------------------------------------------------------


def test_a_hit_leaves_at_least_one_token_to_compute() -> None:
    pool = BlockPool(4, 2)
    table = published(pool, [1, 2, 3, 4])
    assert pool.match_prefix([1, 2, 3, 4]) == table[:1]
    assert pool.match_prefix([1, 2, 3, 4, 5]) == table
    assert pool.match_prefix([1, 2]) == []
    assert pool.match_prefix([1]) == pool.match_prefix([]) == []


def test_a_question_changes_nothing() -> None:
    pool = BlockPool(4, 1)
    pool.free(published(pool, [5, 6]))
    before = state(pool)
    assert len(pool.match_prefix([5, 6, 7])) == 2
    assert pool.num_free_after([0, 1]) == 2
    assert state(pool) == before


def test_only_full_computed_blocks_are_published() -> None:
    pool = BlockPool(4, 2)
    table = pool.allocate(3)
    assert table is not None
    tokens = [1, 2, 3, 4, 5, 6]
    pool.publish(table, tokens, 3)
    assert pool.match_prefix([*tokens, 7]) == table[:1]
    pool.publish(table, tokens, 6)
    assert pool.match_prefix([*tokens, 7]) == table


def test_a_block_is_found_by_all_that_stands_before_it() -> None:
    pool = BlockPool(8, 1)
    table = published(pool, [1, 2, 3])
    assert pool.match_prefix([9, 2, 3, 0]) == []
    assert pool.match_prefix([1, 3, 3, 0]) == table[:1]
    other = published(pool, [9, 2, 3])
    assert pool.match_prefix([9, 2, 3, 0]) == other


def test_prefixes_with_one_hash_are_told_apart() -> None:
    pool = BlockPool(8, 1, hash_function=constant_hash)
    table = published(pool, [5])
    assert pool.match_prefix([6, 0]) == []
    assert pool.match_prefix([5, 0]) == table
    other = published(pool, [6])  # the newer one takes the place in the index
    assert pool.match_prefix([6, 0]) == other
    assert pool.match_prefix([5, 0]) == []
    check_pool(pool, [table, other])


def test_the_same_tokens_after_another_parent_with_the_same_hash_are_no_hit() -> None:
    pool = BlockPool(8, 1, hash_function=lambda parent, tokens: tokens[0])
    published(pool, [1, 7])
    other = published(pool, [2])
    assert pool.match_prefix([2, 7, 0]) == other


def test_a_block_that_lost_its_place_in_the_index_is_of_no_use_and_taken_first() -> None:
    pool = BlockPool(3, 1, hash_function=lambda parent, tokens: tokens[0] % 2)
    odd, even = published(pool, [1]), published(pool, [2])
    pool.free(even)
    pool.free(odd)
    third = published(pool, [3])  # has the hash of [1]
    check_pool(pool, [third])
    assert pool.allocate(1) == odd
    assert pool.match_prefix([2, 0]) == even


def test_of_two_that_computed_the_same_the_first_stays_in_the_index() -> None:
    pool = BlockPool(4, 1)
    first, second = published(pool, [5]), published(pool, [5])
    assert pool.match_prefix([5, 0]) == first
    pool.free(second)
    assert pool.num_free == 3 and pool.match_prefix([5, 0]) == first
    check_pool(pool, [first])
    assert second[0] == pool.allocate(1)[0]  # type: ignore[index]  # a copy is of no use


def test_what_follows_a_duplicate_joins_the_chain_of_the_first() -> None:
    pool = BlockPool(6, 1)
    first = published(pool, [5])
    second = published(pool, [5, 6])
    assert pool.match_prefix([5, 6, 7]) == [first[0], second[1]]


def test_two_that_outlive_their_evicted_original_agree_on_one_chain() -> None:
    """They do not push each other out of the index at every step."""
    pool = BlockPool(7, 1)
    pool.take_changes()
    original = published(pool, [5])
    one = published(pool, [5, 6])  # its first block follows the original
    pool.free(original)
    filler = pool.allocate(pool.num_free)  # the original is evicted
    assert filler is not None
    pool.free(filler)
    two = published(pool, [5, 6])
    for table in (one, two):
        pool.publish(table, [5, 6], 2)
    pool.take_changes()
    for _ in range(3):
        for table in (one, two):
            pool.publish(table, [5, 6], 2)
    assert pool.take_changes() == []
    assert len(pool.match_prefix([5, 6, 7])) == 2
    check_pool(pool, [one, two])


def test_publishing_again_changes_nothing() -> None:
    pool = BlockPool(4, 1)
    table = published(pool, [5, 6])
    before = state(pool)
    pool.publish(table, [5, 6], 2)
    assert state(pool) == before


def test_without_prefix_caching_nothing_is_found() -> None:
    pool = BlockPool(4, 1, enable_prefix_caching=False)
    pool.free(published(pool, [5, 6]))
    assert pool.match_prefix([5, 6, 7]) == []
    check_pool(pool, [])


def test_discarded_content_is_never_found_again() -> None:
    pool = BlockPool(4, 1)
    table = published(pool, [5, 6])
    assert pool.discard(table) == table
    assert pool.match_prefix([5, 6, 7]) == []
    assert pool.num_free == 4
    check_pool(pool, [])


def test_discarding_spares_what_others_hold() -> None:
    pool = BlockPool(4, 1)
    shared = published(pool, [5])
    table = [*shared, *(pool.allocate(1, shared) or [])]
    pool.publish(table, [5, 6], 2)
    assert pool.discard(table) == table[1:]
    assert pool.match_prefix([5, 6, 7]) == shared
    check_pool(pool, [shared])


def test_the_index_says_what_entered_and_left_it() -> None:
    pool = BlockPool(1, 1)
    assert pool.take_changes() == []
    pool.free(published(pool, [5]))
    pool.allocate(1)
    entered, left = pool.take_changes()
    assert (entered.block_id, entered.block_hash) == (0, chained_hash(0, (5,)))
    assert (left.block_id, left.block_hash) == (0, None)
    assert pool.take_changes() == []


def test_changes_that_nobody_asks_for_are_not_kept() -> None:
    pool = BlockPool(1, 1)
    for token_id in range(100):
        pool.free(published(pool, [token_id]))
    assert len(pool._changes) == 0


# Resizing --------------------------------------------------------------------------------------


def test_a_smaller_limit_withholds_idle_blocks_at_once() -> None:
    pool = BlockPool(4, 1)
    pool.resize(3)
    assert (pool.num_free, pool.num_usable, pool.num_excess) == (3, 3, 0)
    assert pool.allocate(4) is None
    assert len(pool.allocate(3) or []) == 3
    check_pool(pool, [[1, 2, 3]])


def test_a_smaller_limit_takes_empty_blocks_before_cached_ones() -> None:
    pool = BlockPool(3, 1)
    cached = published(pool, [5])
    pool.free(cached)
    pool.resize(1)
    assert pool.match_prefix([5, 0]) == cached
    check_pool(pool, [])


def test_used_blocks_above_the_limit_are_withheld_as_they_come_back() -> None:
    pool = BlockPool(4, 1)
    table = published(pool, [5, 6, 7, 8])
    pool.resize(2)
    assert (pool.num_free, pool.num_used, pool.num_excess) == (0, 4, 2)
    pool.free(table[2:])
    assert (pool.num_free, pool.num_used, pool.num_excess) == (0, 2, 0)
    check_pool(pool, [table[:2]])
    pool.free(table[:2])
    assert pool.num_free == 2
    assert pool.match_prefix([5, 6, 7]) == table[:2]


def test_a_withheld_block_cannot_be_found() -> None:
    pool = BlockPool(2, 1)
    table = published(pool, [5, 6])
    pool.resize(1)
    pool.free(table)
    assert pool.match_prefix([5, 6, 7]) == table[:1]
    check_pool(pool, [])


def test_a_larger_limit_gives_blocks_back() -> None:
    pool = BlockPool(4, 1)
    pool.resize(1)
    pool.resize(3)
    assert (pool.num_free, pool.num_usable) == (3, 3)
    pool.resize(4)
    assert sorted(pool.allocate(4) or []) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [0, -1, 5])
def test_a_limit_outside_the_pool_is_refused(limit: int) -> None:
    pool = BlockPool(4, 1)
    with pytest.raises(InvalidConfigError, match="expected 1 to 4"):
        pool.resize(limit)
    assert pool.num_usable == 4


# The pool's own check --------------------------------------------------------------------------


def _two_places(pool: BlockPool) -> None:
    pool._withheld[3] = None


def _lost(pool: BlockPool) -> None:
    del pool._free[3]


def _miscounted(pool: BlockPool) -> None:
    pool.blocks[0].ref_cnt = 2


def _unindexed(pool: BlockPool) -> None:
    pool._index.clear()


def _misfiled(pool: BlockPool) -> None:
    (entry,) = pool._index.values()
    entry.block_hash += 1


@pytest.mark.parametrize("damage", [_two_places, _lost, _miscounted, _unindexed, _misfiled])
def test_the_check_sees_damage(damage: object) -> None:
    pool = BlockPool(4, 1)
    table = published(pool, [5])
    pool.check_invariants([table])
    damage(pool)  # type: ignore[operator]
    with pytest.raises(InvariantError):
        pool.check_invariants([table])
