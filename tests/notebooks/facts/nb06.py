"""What the tests know of notebook 06."""

TIMING_CELLS: list[str] = []

_POOL = """\
from paged_engine.errors import BlockPoolError


class BlockPool:
    def __init__(self, num_blocks, block_size):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))
        self._used = set()

    @property
    def num_free(self):
        return len(self._free)

    def allocate(self, n):
        if n > self.num_free:
            return None
        taken, self._free = self._free[:n], self._free[n:]
        self._used.update(taken)
        return taken

    def free(self, block_ids):
        given = set(block_ids)
        if len(given) < len(block_ids) or not given <= self._used:
            raise BlockPoolError(f"not all in use, or one twice: {list(block_ids)}")
        self._used -= given
        self._free += block_ids
"""

_TABLE = """\
class BlockTable:
    def __init__(self, pool):
        self.pool = pool
        self.block_ids = []

    def grow(self, num_tokens):
        needed = -(-num_tokens // self.pool.block_size)
        new = self.pool.allocate(max(0, needed - len(self.block_ids)))
        if new is None:
            return False
        self.block_ids += new
        return True

    def find(self, position):
        index, place = divmod(position, self.pool.block_size)
        return self.block_ids[index], place

    def release(self):
        self.pool.free(self.block_ids)
        self.block_ids = []
"""

_AUDIT = """\
from collections import Counter


def audit(pool, tables):
    held = Counter(block_id for table in tables for block_id in table)
    num_used = pool.num_blocks - pool.num_free
    twice = sorted(block_id for block_id, times in held.items() if times > 1)
    return num_used - len(held), twice
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "06.1": {
        "asks nobody whether a block is in use": _but(
            _POOL,
            (
                "        if len(given) < len(block_ids) or not given <= self._used:\n"
                '            raise BlockPoolError(f"not all in use, or one twice: '
                '{list(block_ids)}")\n',
                "",
            ),
        ),
        "frees a block twice if one call names it twice": _but(
            _POOL, ("len(given) < len(block_ids) or ", "")
        ),
        "refuses in the middle": _but(
            _POOL,
            (
                "        given = set(block_ids)\n"
                "        if len(given) < len(block_ids) or not given <= self._used:\n"
                '            raise BlockPoolError(f"not all in use, or one twice: '
                '{list(block_ids)}")\n'
                "        self._used -= given\n"
                "        self._free += block_ids\n",
                "        for block_id in block_ids:\n"
                "            if block_id not in self._used:\n"
                '                raise BlockPoolError(f"{block_id} is not in use")\n'
                "            self._used.remove(block_id)\n"
                "            self._free.append(block_id)\n",
            ),
        ),
        "passes over what is not in use": _but(
            _POOL,
            (
                "        if len(given) < len(block_ids) or not given <= self._used:\n"
                '            raise BlockPoolError(f"not all in use, or one twice: '
                '{list(block_ids)}")\n',
                "        given &= self._used\n",
            ),
            ("self._free += block_ids", "self._free += sorted(given)"),
        ),
        "lets set.remove complain": _but(
            _POOL,
            (
                "        if len(given) < len(block_ids) or not given <= self._used:\n"
                '            raise BlockPoolError(f"not all in use, or one twice: '
                '{list(block_ids)}")\n'
                "        self._used -= given\n",
                "        for block_id in block_ids:\n            self._used.remove(block_id)\n",
            ),
        ),
        "asks only whether a block is free": _but(
            _POOL,
            ("not given <= self._used", "given & set(self._free)"),
        ),
        "gives as many as there are": _but(
            _POOL, ("        if n > self.num_free:\n            return None\n", "")
        ),
        "returns an empty list when there are too few": _but(
            _POOL, ("            return None", "            return []")
        ),
        "keeps the last block back": _but(_POOL, ("n > self.num_free", "n >= self.num_free")),
        "leaves in the free list what it hands out": _but(
            _POOL, ("taken, self._free = self._free[:n], self._free[n:]", "taken = self._free[:n]")
        ),
        "counts from 1": _but(_POOL, ("list(range(num_blocks))", "list(range(1, num_blocks + 1))")),
        "hands out a number": _but(_POOL, ("        return taken\n", "        return n\n")),
        "has a method where a property is asked for": _but(_POOL, ("    @property\n", "")).replace(
            "self.num_free:", "self.num_free():"
        ),
        "keeps the list it was given": _but(
            _POOL, ("self._free += block_ids", "self._free = block_ids")
        ),
        "empties the list it was given": _but(
            _POOL,
            (
                "        self._free += block_ids",
                "        while block_ids:\n            self._free.append(block_ids.pop())",
            ),
        ),
        "only counts": """\
from paged_engine.errors import BlockPoolError


class BlockPool:
    def __init__(self, num_blocks, block_size):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.used = 0

    @property
    def num_free(self):
        return self.num_blocks - self.used

    def allocate(self, n):
        if n > self.num_free:
            return None
        self.used += n
        return list(range(self.used - n, self.used))

    def free(self, block_ids):
        if len(block_ids) > self.used:
            raise BlockPoolError("too many")
        self.used -= len(block_ids)
""",
    },
    "06.2": {
        "rounds down": _but(
            _TABLE, ("-(-num_tokens // self.pool.block_size)", "num_tokens // self.pool.block_size")
        ),
        "takes a block when the last one is full": _but(
            _TABLE,
            (
                "-(-num_tokens // self.pool.block_size)",
                "num_tokens // self.pool.block_size + 1",
            ),
        ),
        "takes all blocks anew": _but(_TABLE, ("max(0, needed - len(self.block_ids))", "needed")),
        "replaces the blocks it had": _but(
            _TABLE, ("self.block_ids += new", "self.block_ids = new")
        ),
        "puts new blocks in front": _but(
            _TABLE, ("self.block_ids += new", "self.block_ids = new + self.block_ids")
        ),
        "does not ask whether there was room": _but(
            _TABLE, ("        if new is None:\n            return False\n", "")
        ),
        "takes what it can get": _but(
            _TABLE,
            (
                "        new = self.pool.allocate(max(0, needed - len(self.block_ids)))\n"
                "        if new is None:\n"
                "            return False\n"
                "        self.block_ids += new\n",
                "        while len(self.block_ids) < needed:\n"
                "            new = self.pool.allocate(1)\n"
                "            if new is None:\n"
                "                return False\n"
                "            self.block_ids += new\n",
            ),
        ),
        "returns nothing when it worked": _but(_TABLE, ("        return True\n", "")),
        "one list for all tables": _but(
            _TABLE,
            ("    def __init__", "    block_ids = []\n\n    def __init__"),
            (
                "        self.pool = pool\n        self.block_ids = []\n",
                "        self.pool = pool\n",
            ),
        ),
        "takes blocks for neighbours": _but(
            _TABLE, ("self.block_ids[index], place", "self.block_ids[0] + index, place")
        ),
        "names the place in the list": _but(
            _TABLE, ("self.block_ids[index], place", "index, place")
        ),
        "gives one number": _but(
            _TABLE,
            (
                "self.block_ids[index], place",
                "self.block_ids[index] * self.pool.block_size + place",
            ),
        ),
        "keeps the list that it gave back": _but(
            _TABLE,
            (
                "        self.pool.free(self.block_ids)\n        self.block_ids = []\n",
                "        self.pool.free(self.block_ids)\n",
            ),
        ),
        "forgets its blocks without giving them back": _but(
            _TABLE, ("        self.pool.free(self.block_ids)\n", "")
        ),
    },
    "06.3": {
        "counts a block with two holders twice": _but(
            _AUDIT, ("num_used - len(held), twice", "num_used - sum(held.values()), twice")
        ),
        "sees lost blocks only": _but(
            _AUDIT, ("num_used - len(held), twice", "max(0, num_used - len(held)), twice")
        ),
        "looks at each table by itself": """\
def audit(pool, tables):
    held = {block_id for table in tables for block_id in table}
    num_used = pool.num_blocks - pool.num_free
    twice = sorted({i for table in tables for i in table if table.count(i) > 1})
    return num_used - len(held), twice
""",
        "takes each table for a set": _but(
            _AUDIT, ("for block_id in table)", "for block_id in set(table))")
        ),
        "takes the free ones for those in use": _but(
            _AUDIT, ("pool.num_blocks - pool.num_free", "pool.num_free")
        ),
        "does not sort": _but(
            _AUDIT,
            (
                "sorted(block_id for block_id, times in held.items() if times > 1)",
                "[block_id for block_id, times in reversed(held.items()) if times > 1]",
            ),
        ),
        "says how many, not which": _but(
            _AUDIT, ("num_used - len(held), twice", "num_used - len(held), len(twice)")
        ),
        "uses the tables up": """\
from collections import Counter


def audit(pool, tables):
    held = Counter()
    while tables:
        held.update(tables.pop())
    twice = sorted(block_id for block_id, times in held.items() if times > 1)
    return pool.num_blocks - pool.num_free - len(held), twice
""",
    },
}
