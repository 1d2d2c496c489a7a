"""A model, a tokenizer and a clock that are not there, for tests of everything around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paged_engine.batch import Batch
from paged_engine.kv_cache import KVCacheShape, PagedKVCache

_PRIME = 2_147_483_629  # products of two stay below 2**62


def chain(parent: int, token_id: int, position: int) -> int:
    """A number that stands for a whole prefix: its last token, and what came before."""
    return (parent * 48_271 + token_id * 7_919 + position * 104_729 + 12_345) % _PRIME


class OracleModel:
    """A `ModelRunner` that remembers, in the cache itself, which prefix produced each slot.

    A slot holds (position + 1, chain of the prefix before it, chain of the prefix with it).
    Every read checks that what a sequence sees of its past is one unbroken prefix; what comes
    next depends on the whole of it.  So a stale, lost, misplaced or foreign slot is seen.
    """

    def __init__(
        self, vocab_size: int = 50, max_model_len: int = 10_000, eos: Sequence[int] = ()
    ) -> None:
        self.kv_shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=3)
        self.dtype = torch.int64
        self.device = torch.device("cpu")
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos)
        self.num_forwards = 0
        self.num_tokens = 0
        self.fail_at: set[int] = set()  # forwards, by number, that raise
        self.nan_after: set[int] = set()  # a sequence whose last token is one of these yields NaN

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        self.num_forwards += 1
        self.num_tokens += batch.num_tokens
        ids, positions = batch.input_ids.tolist(), batch.positions.tolist()
        ends: list[int] = []
        entries: list[tuple[int, int, int]] = []
        for s, context_len in enumerate(batch.context_lens):
            first, last = batch.query_starts[s], batch.query_starts[s + 1]
            start = context_len - (last - first)
            assert positions[first:last] == list(range(start, context_len)), "wrong positions"
            before = self._read(cache, batch.block_tables[s], start)
            for t in range(first, last):
                after = chain(before, ids[t], positions[t])
                entries.append((positions[t] + 1, before, after))
                before = after
            ends.append(before)
        written = torch.tensor(entries)[:, None, :]
        cache.write(0, written, written, batch.slot_mapping)
        for s, context_len in enumerate(batch.context_lens):
            assert self._read(cache, batch.block_tables[s], context_len) == ends[s], (
                "what was written cannot be read back"
            )
        if self.num_forwards in self.fail_at:
            raise RuntimeError("the model failed, as planned")
        logits = self.logits(ends)
        for s, last_token in enumerate(batch.input_ids[batch.last_indices].tolist()):
            if last_token in self.nan_after:
                logits[s, 3] = float("nan")
        return logits

    def _read(self, cache: PagedKVCache, block_table: torch.Tensor, num_tokens: int) -> int:
        """The chain that the first `num_tokens` slots end in, after checking every link."""
        if num_tokens == 0:
            return 0
        k, v = cache.gather(0, block_table, num_tokens)
        assert torch.equal(k, v), "keys and values differ"
        position, before, after = k[0].unbind(-1)
        assert torch.equal(position, torch.arange(1, num_tokens + 1)), "a slot of elsewhere"
        assert int(before[0]) == 0 and torch.equal(before[1:], after[:-1]), "a slot of another"
        return int(after[-1])

    def logits(self, chains: Sequence[int]) -> torch.Tensor:
        """`[S, vocab_size]`, from the chains of S prefixes alone."""
        column = torch.tensor(chains)[:, None]
        return ((column * (torch.arange(self.vocab_size) * 2 + 3)) % 9_973).float() / 1_000

    def continuation(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The greedy output for `prompt`, computed without any engine."""
        tokens = list(prompt)
        end = 0
        for position, token_id in enumerate(tokens):
            end = chain(end, token_id, position)
        for _ in range(num_tokens):
            token_id = int(self.logits([end]).argmax())
            end = chain(end, token_id, len(tokens))
            tokens.append(token_id)
        return tokens[len(prompt) :]


class ByteTokenizer:
    """Every byte is a token, so that most characters beyond ASCII span several."""

    vocab_size = 256

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


class VirtualClock:
    """A clock that goes forward only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
