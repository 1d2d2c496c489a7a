"""The clear backend: one sequence at a time, as one would write it on a board."""

from __future__ import annotations

import torch

from paged_engine.attention.interface import visible, weighted_values
from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache


def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: int,
    cache: PagedKVCache,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    rope: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """See :class:`paged_engine.attention.Attend`; slow, and the measure of the others."""
    out = q.new_empty(*q.shape[:2], cache.v.shape[-1])
    for s, context_len in enumerate(batch.context_lens):
        tokens = slice(batch.query_starts[s], batch.query_starts[s + 1])
        keys, values = cache.gather(layer, batch.block_tables[s], context_len)
        # each KV head serves a group of query heads (GQA)
        group = q.shape[1] // keys.shape[0]
        keys, values = (x.repeat_interleave(group, dim=0) for x in (keys, values))
        mask = visible(
            batch.positions[tokens, None], torch.arange(context_len, device=q.device), window
        )
        out[tokens] = weighted_values(
            q[tokens].transpose(0, 1),
            keys,
            values,
            mask,
            scale=scale,
            soft_cap=soft_cap,
            sinks=None if sinks is None else sinks[:, None, None],
        ).transpose(0, 1)
    return out
