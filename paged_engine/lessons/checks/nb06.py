"""Checks of notebook 06: blocks are handed out once, taken back once, and none is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from paged_engine.errors import BlockPoolError
from paged_engine.lessons.exercises import NotYet, exercise, expect
from paged_engine.lessons.solutions import nb06

_Pool: Any = nb06.BlockPool  # as it stands in the notebook, where nothing is annotated

# ------------------------------------------------------------------ 06.1


@exercise(
    "06.1",
    "all or nothing, each block to one holder at a time, and whoever frees twice is told",
)
def check_pool(pool_class: Any) -> None:
    """What is handed out, what comes back, what is refused, and long random runs."""
    pool = _made(pool_class, 4)
    expect(_num_free(pool), 4, "a new pool of 4, num_free")
    first = _ids(pool.allocate(3), 3, "a pool of 4, allocate(3)")
    expect(_num_free(pool), 1, "a pool of 4 after allocate(3), num_free")
    _too_many(pool, first)
    pool = _made(pool_class, 4)
    ids = _ids(pool.allocate(3), 3, "a pool of 4, allocate(3)")
    kept = list(ids)
    pool.free(ids)
    when = "a pool of 4 after allocate(3) and free of all 3"
    own = "take what is given, and leave the caller's list as it is"
    expect(list(ids), kept, f"{when}, the list that was given", own)
    ids.clear()
    expect(_num_free(pool), 4, f"{when}, num_free", "keep copies, not the caller's own list")
    again = _ids(pool.allocate(4), 4, f"{when}, allocate(4)")
    again.clear()
    expect(_num_free(pool), 0, "after allocate(4) and clear() of the list, num_free", own)
    _refusals(pool_class)
    for seed in range(20):
        _random_run(pool_class, seed)


def _too_many(pool: Any, first: list[int]) -> None:
    when = "a pool of 4 after allocate(3), allocate(2)"
    nothing = "too few: return None, and take none"
    got = pool.allocate(2)
    if got is not None:
        raise NotYet("None", got, when, nothing)
    expect(_num_free(pool), 1, f"{when}, num_free", nothing)
    last = _ids(pool.allocate(1), 1, "a pool of 4 after allocate(3), allocate(1)")
    once = "a block that is handed out is no longer free"
    expect(sorted(first + last), [0, 1, 2, 3], "all ids of a pool of 4", once)
    expect(_num_free(pool), 0, "a pool of 4 after all are taken, num_free")
    _ids(pool.allocate(0), 0, "an empty pool, allocate(0)")


def _refusals(pool_class: Any) -> None:
    used = "ask first whether each id is in use, and change something only then"
    each = "one list may name a block twice: compare its length with that of its set"
    cases: list[tuple[str, Callable[[list[int]], list[int]], str]] = [
        ("both again", lambda ids: ids[:2], "a block that is free already is a double free"),
        ("one in use, then one that is free", lambda ids: [ids[2], ids[0]], used),
        ("one in use, twice in one list", lambda ids: [ids[2], ids[2]], each),
        ("an id that was never handed out", lambda ids: [ids[2], _other(ids)], used),
        ("an id that the pool does not have", lambda ids: [99], used),
        ("-1, which no block is called", lambda ids: [-1], used),
    ]
    for what, choose, hint in cases:
        pool = _made(pool_class, 4)
        ids = _ids(pool.allocate(3), 3, "a pool of 4, allocate(3)")
        pool.free(ids[:2])
        when = f"3 of 4 are taken, 2 of them freed, then free of {what}"
        _must_refuse(pool, choose(ids), when, hint)
        expect(_num_free(pool), 3, f"{when}, num_free", "whoever is refused changes nothing")
        left = _ids(pool.allocate(3), 3, f"{when}, allocate(3)")
        if ids[2] in left:
            raise NotYet("other blocks than the one in use", left, f"{when}, allocate(3)", hint)
        pool.free([ids[2]])
        expect(_num_free(pool), 1, f"{when}, and at last free of the one in use, num_free")


def _must_refuse(pool: Any, ids: list[int], when: str, hint: str) -> None:
    try:
        pool.free(ids)
    except BlockPoolError:
        return
    except Exception as problem:
        told = f"{type(problem).__name__}: {problem}"
        raise NotYet("BlockPoolError", told, when, hint) from problem
    raise NotYet("BlockPoolError", "no error", when, hint)


def _random_run(pool_class: Any, seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randint(1, 12)
    pool = _made(pool_class, size)
    tables: list[list[int]] = []
    for _ in range(60):
        num_used = sum(map(len, tables))
        when = f"a pool of {size} of which {num_used} are in use"
        if tables and draw.random() < 0.45:
            pool.free(tables.pop(draw.randrange(len(tables))))
        else:
            n = draw.randint(0, 4)
            got = pool.allocate(n)
            if n > size - num_used:
                expect(got is None, True, f"{when}, allocate({n}) is None")
            else:
                tables.append(list(_ids(got, n, f"{when}, allocate({n})", size)))
        held = [block_id for table in tables for block_id in table]
        if len(set(held)) < len(held):
            raise NotYet("each block in one table", tables, when, "hand out only what is free")
        expect(_num_free(pool), size - len(held), f"{when}, num_free after the next call")


def _made(pool_class: Any, size: int) -> Any:
    pool = pool_class(size, 16)
    kept = (getattr(pool, "num_blocks", None), getattr(pool, "block_size", None))
    stays = "keep the two lines of __init__ that the stub has"
    expect(kept, (size, 16), f"BlockPool({size}, 16), num_blocks and block_size", stays)
    return pool


def _num_free(pool: Any) -> int:
    got = pool.num_free
    if callable(got):
        raise NotYet("a number", "a method", "num_free", "leave @property above it")
    if isinstance(got, bool) or not isinstance(got, int):
        raise NotYet("a number", got, "num_free")
    return got


def _ids(got: Any, n: int, when: str, size: int = 4) -> list[int]:
    listed = "return a list of n different ids"
    if got is None:
        raise NotYet(f"{n} ids", "None", when, "None only if too few are free: n > num_free")
    if not isinstance(got, list) or any(type(block_id) is not int for block_id in got):
        raise NotYet(f"a list of {n} ids", got, when, listed)
    if len(got) != n or len(set(got)) != n or not set(got) <= set(range(size)):
        raise NotYet(f"{n} different ids, each from 0 to {size - 1}", got, when, listed)
    return got


def _other(ids: Sequence[int]) -> int:
    return next(block_id for block_id in range(4) if block_id not in ids)


# ------------------------------------------------------------------ 06.2


@exercise(
    "06.2",
    "a table takes a block when the last one is full and not before, knows where each token "
    "lies, and gives everything back once",
)
def check_table(table_class: Any) -> None:
    """Growing at the border, refusals, places, the end."""
    pool = _scattered([5, 2, 7, 0, 3])
    table = table_class(pool)
    sizes = {1: [5], 15: [5], 16: [5], 17: [5, 2], 32: [5, 2], 33: [5, 2, 7]}
    up = "how many blocks do that many tokens need, rounded up? -(-num_tokens // block_size)"
    for num_tokens, wanted in sizes.items():
        when = f"block size 16, free blocks 5, 2, 7, 0, 3, grow({num_tokens})"
        got = table.grow(num_tokens)
        if got is not True:
            raise NotYet(True, repr(got), when, "return True when there is room")
        end = "the blocks it has already stay, and new ones come behind them"
        hint = end if len(_table(table)) == len(wanted) else up
        expect(_table(table), wanted, f"{when}, block_ids", hint)
    expect(table.grow(4), True, "grow(4) of a table with room for 48", "it has room already")
    expect(_table(table), [5, 2, 7], "block_ids after grow(4) of a table with room for 48")
    _places(table)
    _no_room(table_class)
    _the_end(table_class)


def _places(table: Any) -> None:
    where = "which block of the list, and where in it: divmod(position, block_size)"
    for position, wanted in {
        0: (5, 0),
        15: (5, 15),
        16: (2, 0),
        20: (2, 4),
        31: (2, 15),
        47: (7, 15),
    }.items():
        when = f"block size 16, block_ids [5, 2, 7], find({position})"
        expect(table.find(position), wanted, when, where)


def _no_room(table_class: Any) -> None:
    pool = _scattered([4, 1], size=4)
    one, other = table_class(pool), table_class(pool)
    when = "block size 4, 2 blocks free, grow(9)"
    none = "allocate returns None when there are too few: pass that on as False"
    try:
        got = one.grow(9)
    except TypeError as problem:
        raise NotYet(False, f"TypeError: {problem}", when, none) from problem
    if got is not False:
        raise NotYet(False, repr(got), when, none)
    expect(_table(one), [], f"{when}, block_ids", "whoever is refused changes nothing")
    expect(pool.num_free, 2, f"{when}, num_free of the pool", "ask for all that is missing at once")
    expect(one.grow(4), True, "block size 4, 2 blocks free, grow(4)")
    expect(other.grow(4), True, "then grow(4) of another table")
    apart = "each table has a list of its own"
    expect(_table(one), [4], "block_ids of the first of two tables", apart)
    expect(_table(other), [1], "block_ids of the second of two tables", apart)
    expect(one.grow(5), False, "block size 4, no block free, a table of 1 block, grow(5)", none)
    expect(_table(one), [4], "its block_ids after that", "whoever is refused changes nothing")


def _the_end(table_class: Any) -> None:
    pool = _scattered([5, 2, 7], size=4)
    table = table_class(pool)
    table.grow(8)
    table.release()
    when = "after grow(8) at block size 4 and release()"
    expect(pool.num_free, 3, f"{when}, num_free of the pool", "give all blocks back to the pool")
    expect(_table(table), [], f"{when}, block_ids", "an empty table cannot be freed twice")
    table.release()
    expect(pool.num_free, 3, "after a second release(), num_free of the pool")
    expect(table.grow(3), True, "grow(3) after release()")
    expect(len(_table(table)), 1, "how many blocks it has then")


def _scattered(free: list[int], size: int = 16) -> Any:
    """A pool of 8 that hands these out, in this order."""
    pool = _Pool(8, size)
    pool._used, pool._free = set(range(8)) - set(free), list(free)
    return pool


def _table(table: Any) -> list[int]:
    found = getattr(table, "block_ids", None)
    if not isinstance(found, list):
        raise NotYet("a list", found, "block_ids", "keep the line of __init__ that the stub has")
    return list(found)


# ------------------------------------------------------------------ 06.3


@exercise(
    "06.3", "it finds lost blocks, blocks with two holders and blocks that were freed too early"
)
def check_audit(audit: Callable[..., Any]) -> None:
    """Pools and tables of all kinds."""
    lost = "in use are num_blocks - num_free; take off the different blocks that tables name"
    twice = "count over all tables together; a Counter does it"
    cases: list[tuple[int, list[list[int]], tuple[int, list[int]], str]] = [
        (5, [[0, 1], [2, 3, 4]], (0, []), lost),
        (0, [], (0, []), lost),
        (5, [[0, 1]], (3, []), lost),
        (4, [], (4, []), lost),
        (4, [[0, 1], [], [1, 2, 3]], (0, [1]), twice),
        (4, [[0, 3, 1], [3, 2, 0]], (0, [0, 3]), "sorted, please"),
        (2, [[0, 1, 0]], (0, [0]), "one table may name a block twice, too"),
        (2, [[0, 1], [2]], (-1, []), "less than 0: a table names a block that is free"),
        (3, [[0, 1], [1, 0], [1]], (1, [0, 1]), f"each id once; {lost}"),
    ]
    for num_used, tables, wanted, hint in cases:
        pool = _Pool(8, 16)
        pool.allocate(num_used)
        when = f"a pool of 8 with {num_used} in use, tables {tables}"
        given = [list(table) for table in tables]
        got = audit(pool, given)
        expect(got, wanted, when, hint)
        expect(given, tables, f"{when}, the tables afterwards", "leave them as they are")
        expect(pool.num_free, 8 - num_used, f"{when}, num_free", "leave the pool as it is")
