"""The pool of KV blocks: who holds which, which are free, which can be shared.

A block is in one of three states:

- **used**: some request's table holds it (`ref_cnt` tables do);
- **cached**: no table holds it, but its content is known and a request that begins with
  the same tokens may have it back;
- **free**: nobody's, content of no use.

Blocks that can be allocated (free and cached) stand in one queue.  Those of no use are at
the front; the cached ones follow in the order in which they were last used, so the least
recently used is evicted first.  The queue is an `OrderedDict`, a linked list with an index,
so taking, returning and pulling out of the middle are all O(1).  The idea is the block pool
of vLLM v1; PagedAttention itself is Kwon et al. 2023, arXiv 2309.06180.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from paged_engine.errors import BlockPoolError, InvalidConfigError, InvariantError

HashFunction = Callable[[int, tuple[int, ...]], int]


def chained_hash(parent_hash: int, tokens: tuple[int, ...]) -> int:
    """Hash of a full block: of its tokens and, through `parent_hash`, of all before them."""
    return hash((parent_hash, tokens))


@dataclass(eq=False, slots=True)
class CachedPrefix:
    """An entry of the prefix index: all tokens from the start to the end of one full block.

    `parent` and `tokens` say exactly which prefix this is.  A lookup compares both, so
    that two prefixes with the same hash are never taken for each other (vLLM pull 12621).
    """

    block_hash: int
    parent: CachedPrefix | None
    tokens: tuple[int, ...]
    block_id: int

    def matches(self, parent: CachedPrefix | None, tokens: tuple[int, ...]) -> bool:
        return self.parent is parent and self.tokens == tokens


@dataclass(eq=False, slots=True)
class Block:
    """One block of the pool.

    `prefix` is the index entry of its content, once full; the entry may point to another
    block, when two requests computed the same prefix at the same time.
    """

    block_id: int
    ref_cnt: int = 0
    prefix: CachedPrefix | None = None

    @property
    def is_cached(self) -> bool:
        return self.prefix is not None and self.prefix.block_id == self.block_id


@dataclass(frozen=True, slots=True)
class IndexChange:
    """A block entered the prefix index under `block_hash`, or left it (None)."""

    block_id: int
    block_hash: int | None


class BlockPool:
    """A fixed number of KV blocks, handed out and taken back in O(1) each.

    Args:
        num_blocks: Blocks in the pool, with ids 0 to num_blocks - 1.
        block_size: Tokens a block holds.
        enable_prefix_caching: Keep full blocks findable by content.
        hash_function: What the prefix index is keyed by.  Results never depend on it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        hash_function: HashFunction = chained_hash,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise InvalidConfigError(
                f"a pool of {num_blocks} blocks of {block_size} tokens; expected at least 1 of each"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.blocks = [Block(i) for i in range(num_blocks)]
        self._hash = hash_function
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._withheld: dict[int, None] = {}  # idle blocks that a smaller limit keeps back
        self._limit = num_blocks
        self._index: dict[int, CachedPrefix] = {}
        self._changes: deque[IndexChange] = deque(maxlen=0)  # nobody asks: nothing is kept

    # ------------------------------------------------------------------ questions

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out now, the cached ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._withheld)

    @property
    def num_usable(self) -> int:
        """Blocks that may be in use at once; less than `num_blocks` after `resize`."""
        return self._limit

    @property
    def num_excess(self) -> int:
        """Used blocks above the limit, which holders must give back."""
        return max(0, self.num_used - self._limit)

    def num_free_after(self, hits: Sequence[int]) -> int:
        """Blocks that would be free once `hits` were pinned.  Changes nothing."""
        return len(self._free) - sum(self.blocks[i].ref_cnt == 0 for i in hits)

    def match_prefix(self, token_ids: Sequence[int]) -> list[int]:
        """Blocks that already hold the longest cached prefix of `token_ids`.

        At least one token is always left over, because a request must compute something to
        get logits (nano-vllm issue 144).  Changes nothing, evicts nothing.
        """
        if not self.enable_prefix_caching:
            return []
        hits: list[int] = []
        parent: CachedPrefix | None = None
        num_full = (len(token_ids) - 1) // self.block_size
        for start in range(0, num_full * self.block_size, self.block_size):
            tokens = tuple(token_ids[start : start + self.block_size])
            entry = self._index.get(self._hash_of(parent, tokens))
            if entry is None or not entry.matches(parent, tokens):
                break
            hits.append(entry.block_id)
            parent = entry
        return hits

    # ------------------------------------------------------------------ changes

    def allocate(self, n: int, hits: Sequence[int] = ()) -> list[int] | None:
        """Pin `hits` and take `n` blocks, or change nothing.

        Args:
            n: How many new blocks.
            hits: Blocks to share, from `match_prefix` or another request's table.

        Returns:
            The ids of the n new blocks, without the hits; None if there are too few.
        """
        if n < 0:
            raise BlockPoolError(f"{n} blocks were asked for; expected 0 or more")
        if n > self.num_free_after(hits):
            return None
        for block_id in hits:
            self._free.pop(block_id, None)
            self.blocks[block_id].ref_cnt += 1
        new = [self._free.popitem(last=False)[0] for _ in range(n)]
        for block_id in new:
            self._forget(block_id)
            self.blocks[block_id].ref_cnt = 1
        return new

    def free(self, block_ids: Sequence[int]) -> None:
        """Give up one reference to each block.

        Blocks are returned last one first, so that the beginning of a sequence, which
        others are likelier to share, is evicted later.

        Raises:
            BlockPoolError: A block is given back more often than it is held; nothing is
                changed.
        """
        self._check_held(block_ids)
        for block_id in reversed(block_ids):
            block = self.blocks[block_id]
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self._return(block)

    def discard(self, block_ids: Sequence[int]) -> list[int]:
        """Free blocks whose content must not be used again, and drop it from the index.

        Returns:
            The ids that nobody holds any more.
        """
        self._check_held(block_ids)
        for block_id in block_ids:
            if self.blocks[block_id].ref_cnt == 1:
                self._forget(block_id)
        self.free(block_ids)
        return [i for i in block_ids if self.blocks[i].ref_cnt == 0]

    def publish(
        self, block_table: Sequence[int], token_ids: Sequence[int], num_computed_tokens: int
    ) -> None:
        """Make the full, computed blocks of a request findable by others.

        Call it only when the keys and values are in the cache: publishing earlier lets
        another request read what was not yet written (nano-vllm issue 208).
        """
        if not self.enable_prefix_caching:
            return
        num_full = num_computed_tokens // self.block_size
        first = num_full
        while first > 0 and not self._is_findable(self.blocks[block_table[first - 1]]):
            first -= 1
        parent = self.blocks[block_table[first - 1]].prefix if first else None
        for i in range(first, num_full):
            tokens = tuple(token_ids[i * self.block_size : (i + 1) * self.block_size])
            parent = self._publish_one(self.blocks[block_table[i]], parent, tokens)

    def resize(self, num_usable: int) -> None:
        """Limit how many blocks may be in use at once, without moving any.

        Idle blocks above the limit are withheld now, used ones as they come back;
        `num_excess` says how many are still to come.
        """
        if not 1 <= num_usable <= self.num_blocks:
            raise InvalidConfigError(
                f"the usable pool cannot be {num_usable} blocks; expected 1 to {self.num_blocks}"
            )
        self._limit = num_usable
        while self._withheld and self._must_withhold() < 0:
            block_id, _ = self._withheld.popitem()
            self._free[block_id] = None
            self._free.move_to_end(block_id, last=False)
        while self._free and self._must_withhold() > 0:
            block_id, _ = self._free.popitem(last=False)
            self._forget(block_id)
            self._withheld[block_id] = None

    def take_changes(self) -> list[IndexChange]:
        """What entered and left the prefix index since the last call, in order.

        They are kept from the first call on, for who calls again and again.
        """
        changes, self._changes = self._changes, deque()
        return list(changes)

    # ------------------------------------------------------------------ inner workings

    def _hash_of(self, parent: CachedPrefix | None, tokens: tuple[int, ...]) -> int:
        return self._hash(0 if parent is None else parent.block_hash, tokens)

    def _publish_one(
        self, block: Block, parent: CachedPrefix | None, tokens: tuple[int, ...]
    ) -> CachedPrefix:
        block_hash = self._hash_of(parent, tokens)
        entry = self._index.get(block_hash)
        if entry is not None and entry.matches(parent, tokens):
            block.prefix = entry  # somebody was first; follow that chain
            return entry
        if entry is not None:  # same hash, other prefix: the newer one stays
            self._forget(entry.block_id)
            if entry.block_id in self._free:
                self._free.move_to_end(entry.block_id, last=False)
        entry = CachedPrefix(block_hash, parent, tokens, block.block_id)
        self._index[block_hash] = block.prefix = entry
        self._changes.append(IndexChange(block.block_id, block_hash))
        return entry

    def _is_findable(self, block: Block) -> bool:
        """Whether its content is in the index; that of another block may have been evicted."""
        prefix = block.prefix
        return prefix is not None and self._index.get(prefix.block_hash) is prefix

    def _forget(self, block_id: int) -> None:
        """Drop what the block is known to contain."""
        block = self.blocks[block_id]
        if block.is_cached:
            assert block.prefix is not None
            del self._index[block.prefix.block_hash]
            self._changes.append(IndexChange(block_id, None))
        block.prefix = None

    def _must_withhold(self) -> int:
        return self.num_blocks - self._limit - len(self._withheld)

    def _return(self, block: Block) -> None:
        if self._must_withhold() > 0:
            self._forget(block.block_id)
            self._withheld[block.block_id] = None
            return
        self._free[block.block_id] = None
        if not block.is_cached:  # of no use to anyone: the first to be taken again
            block.prefix = None
            self._free.move_to_end(block.block_id, last=False)

    def _check_held(self, block_ids: Sequence[int]) -> None:
        for block_id, times in Counter(block_ids).items():
            if not 0 <= block_id < self.num_blocks:
                raise BlockPoolError(
                    f"block {block_id} is not of this pool; expected 0 to {self.num_blocks - 1}"
                )
            if times > (held := self.blocks[block_id].ref_cnt):
                raise BlockPoolError(
                    f"block {block_id} was freed {times} times but is held {held} times "
                    f"(a double free); free each table once, and clear it"
                )

    # ------------------------------------------------------------------ invariants

    def check_invariants(self, block_tables: Iterable[Sequence[int]] | None = None) -> None:
        """Check that the pool is consistent, and with `block_tables` if they are given.

        Args:
            block_tables: The tables of all requests that hold blocks.

        Raises:
            InvariantError: With the first thing that does not hold.
        """
        idle = set(self._free)
        if both := idle & self._withheld.keys():
            raise InvariantError(f"blocks {both} are both free and withheld")
        if len(self._withheld) > self.num_blocks - self._limit:
            raise InvariantError("more blocks are withheld than the limit asks for")
        for block in self.blocks:
            is_idle = block.block_id in idle or block.block_id in self._withheld
            if block.ref_cnt < 0 or is_idle != (block.ref_cnt == 0):
                where = "idle" if is_idle else "not idle"
                raise InvariantError(
                    f"block {block.block_id} has ref_cnt {block.ref_cnt} but is {where}"
                )
        cached = {b.block_id for b in self.blocks if b.is_cached}
        indexed = {entry.block_id for entry in self._index.values()}
        if cached != indexed or len(indexed) != len(self._index):
            raise InvariantError(
                f"the prefix index and the cached blocks differ in {cached ^ indexed}"
            )
        for block_hash, entry in self._index.items():
            if self.blocks[entry.block_id].prefix is not entry or entry.block_hash != block_hash:
                raise InvariantError(f"block {entry.block_id} does not know its index entry")
        if block_tables is not None:
            held = Counter(i for table in block_tables for i in table)
            for block in self.blocks:
                if block.ref_cnt != held[block.block_id]:
                    raise InvariantError(
                        f"block {block.block_id} has ref_cnt {block.ref_cnt} but is in "
                        f"{held[block.block_id]} tables"
                    )
