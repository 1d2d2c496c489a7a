"""Solutions of notebook 06: a pool of blocks, a table for each request, and an audit of both."""

# As they stand in the notebook, where nothing is annotated.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, var-annotated"

from collections import Counter

from paged_engine.errors import BlockPoolError


class BlockPool:
    """A fixed number of blocks; each is free or in use."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))
        self._used = set()

    @property
    def num_free(self):
        """How many blocks can be handed out now."""
        return len(self._free)

    def allocate(self, n):
        """The ids of n blocks; None, and nothing changed, if there are too few."""
        if n > self.num_free:
            return None
        taken, self._free = self._free[:n], self._free[n:]
        self._used.update(taken)
        return taken

    def free(self, block_ids):
        """Take them all back; if one is not in use, raise and change nothing."""
        given = set(block_ids)
        if len(given) < len(block_ids) or not given <= self._used:
            raise BlockPoolError(f"not all in use, or one twice: {list(block_ids)}")
        self._used -= given
        self._free += block_ids


class BlockTable:
    """The blocks of one request, in the order of its tokens."""

    def __init__(self, pool):
        self.pool = pool
        self.block_ids = []

    def grow(self, num_tokens):
        """Have room for so many tokens in all; False, and no change, if blocks lack."""
        needed = -(-num_tokens // self.pool.block_size)
        new = self.pool.allocate(max(0, needed - len(self.block_ids)))
        if new is None:
            return False
        self.block_ids += new
        return True

    def find(self, position):
        """In which block the token at `position` lies, and at which place in it."""
        index, place = divmod(position, self.pool.block_size)
        return self.block_ids[index], place

    def release(self):
        """Give all blocks back; a second time there are none."""
        self.pool.free(self.block_ids)
        self.block_ids = []


def audit(pool, tables):
    """How many blocks are in use but in no table, and which ids stand there twice."""
    held = Counter(block_id for table in tables for block_id in table)
    num_used = pool.num_blocks - pool.num_free
    twice = sorted(block_id for block_id, times in held.items() if times > 1)
    return num_used - len(held), twice
