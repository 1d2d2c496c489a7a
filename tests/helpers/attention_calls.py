"""What attention is called with: queries, a cache that is full of numbers, and a batch."""

from __future__ import annotations

import torch

from paged_engine.batch import Batch
from paged_engine.kv_cache import KVCacheShape, PagedKVCache


def make(
    lengths: list[tuple[int, int]],
    *,
    block_size: int = 4,
    heads: tuple[int, int] = (2, 1),
    dims: tuple[int, int] = (8, 8),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[torch.Tensor, PagedKVCache, Batch]:
    """Queries, cache and batch; each length is (tokens computed now, tokens in all)."""
    draw = torch.Generator().manual_seed(seed)
    counts = [-(-total // block_size) for _, total in lengths]
    shape = KVCacheShape(2, heads[1], *dims)
    cache = PagedKVCache(shape, sum(counts) + 2, block_size, dtype=dtype, device="cpu")
    cache.k.copy_(torch.randn(cache.k.shape, generator=draw))
    cache.v.copy_(torch.randn(cache.v.shape, generator=draw))
    ids = torch.randperm(cache.num_blocks, generator=draw).tolist()
    tables = [[ids.pop() for _ in range(count)] for count in counts]
    positions, starts = [], [0]
    for new, total in lengths:
        positions += range(total - new, total)
        starts.append(starts[-1] + new)
    batch = Batch(
        input_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        slot_mapping=torch.zeros(starts[-1], dtype=torch.int64),
        block_tables=torch.tensor([t + t[:1] * (max(counts) - len(t)) for t in tables]),
        context_lens=[total for _, total in lengths],
        query_starts=starts,
        last_indices=torch.tensor(starts[1:]) - 1,
    )
    # as the models hand it over: heads before tokens in memory
    q = torch.randn(heads[0], starts[-1], dims[0], generator=draw).to(dtype).transpose(0, 1)
    return q, cache, batch
