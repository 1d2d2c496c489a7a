"""Gather the blocks, then let torch's scaled_dot_product_attention do the arithmetic.

Sequences with one query token (decode) go together, in groups of similar length so that
little is padded; each chunk of a prompt goes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from paged_engine.attention.interface import visible, weighted_values
from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache

# Small enough that lengths within a group are alike, large enough to fill the cores.
DECODE_GROUP_SIZE = 8


@dataclass(frozen=True, slots=True)
class _Options:
    """What a layer asks for beside q, k and v; see :class:`paged_engine.attention.Attend`."""

    scale: float
    window: int | None
    soft_cap: float | None
    sinks: torch.Tensor | None


@dataclass(slots=True)
class _DecodeGroup:
    """G sequences with one query token each.

    Attributes:
        tokens: `[G]`, their places in the packed batch.
        blocks: `[G * num_blocks]`, their block tables, each as long as the longest.
        positions: `[G, 1, 1]`, of the query tokens.
        keys: `[num_blocks * block_size]`, the position of each gathered key.
    """

    tokens: torch.Tensor
    blocks: torch.Tensor
    positions: torch.Tensor
    keys: torch.Tensor


class SdpaAttention:
    """See :class:`paged_engine.attention.Attend`.

    Gathered keys and values go to a scratch buffer that is kept: memory that is mapped and
    unmapped in every layer costs more than the copy.
    """

    def __init__(self) -> None:
        self._scratch: dict[str, torch.Tensor] = {}

    def __call__(
        self,
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
        out = torch.empty_like(q)
        how = _Options(scale, window, soft_cap, sinks)
        for s, length in enumerate(batch.query_lens):
            if length > 1:
                self._prefill(out, q, s, layer, cache, batch, how)
        if "sdpa" not in batch.memo:
            batch.memo["sdpa"] = _decode_groups(batch, cache.block_size)
        for group in batch.memo["sdpa"]:
            self._decode(out, q, group, layer, cache, how)
        return out

    def _prefill(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        s: int,
        layer: int,
        cache: PagedKVCache,
        batch: Batch,
        how: _Options,
    ) -> None:
        tokens = slice(batch.query_starts[s], batch.query_starts[s + 1])
        context_len = batch.context_lens[s]
        num_blocks = -(-context_len // cache.block_size)
        table = batch.block_tables[s, :num_blocks]
        keys, values = (
            self._gather(name, tensor[layer], table)[:, :context_len]
            for name, tensor in (("k", cache.k), ("v", cache.v))
        )
        mask = visible(
            batch.positions[tokens, None], torch.arange(context_len, device=q.device), how.window
        )
        query = q[tokens].transpose(0, 1)
        num_heads, num_queries, head_dim = query.shape
        group = num_heads // keys.shape[0]
        sinks = how.sinks
        if sinks is not None:
            sinks = sinks.repeat_interleave(num_queries).view(1, keys.shape[0], -1, 1)
        # GQA: the query heads of a group are stacked as more queries of their one KV head
        stacked = query.reshape(1, keys.shape[0], group * num_queries, head_dim)
        result = _attend(stacked, keys[None], values[None], mask.repeat(group, 1), how, sinks)
        out[tokens] = result.view(query.shape).transpose(0, 1)

    def _decode(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        group: _DecodeGroup,
        layer: int,
        cache: PagedKVCache,
        how: _Options,
    ) -> None:
        size = len(group.tokens)
        num_kv_heads, head_dim = cache.k.shape[2], cache.k.shape[4]
        keys, values = (
            self._gather(name, tensor[layer], group.blocks).view(num_kv_heads, size, -1, head_dim)
            for name, tensor in (("k", cache.k), ("v", cache.v))
        )
        mask = visible(group.positions, group.keys, how.window)  # [G, 1, K]
        query = q[group.tokens].view(size, num_kv_heads, -1, head_dim).transpose(0, 1)
        sinks = None if how.sinks is None else how.sinks.view(num_kv_heads, 1, -1, 1)
        result = _attend(query, keys, values, mask, how, sinks)
        out[group.tokens] = result.transpose(0, 1).reshape(size, -1, head_dim)

    def _gather(self, name: str, blocks: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """`[num_kv_heads, len(table) * block_size, head_dim]`, valid until the next call."""
        num_heads, block_size, head_dim = blocks.shape[1:]
        numel = num_heads * len(table) * block_size * head_dim
        scratch = self._scratch.get(name)
        if scratch is None or scratch.numel() < numel or scratch.dtype != blocks.dtype:
            scratch = self._scratch[name] = blocks.new_empty(numel)
        target = scratch[:numel].view(num_heads, len(table), block_size, head_dim)
        torch.index_select(blocks.transpose(0, 1), 1, table, out=target)
        return target.flatten(1, 2)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    how: _Options,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """torch's attention, or the written-out one for what torch has no argument for."""
    if how.soft_cap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=how.scale)
    return weighted_values(q, k, v, mask, scale=how.scale, soft_cap=how.soft_cap, sinks=sinks)


def _decode_groups(batch: Batch, block_size: int) -> list[_DecodeGroup]:
    decoding = [s for s, length in enumerate(batch.query_lens) if length == 1]
    decoding.sort(key=lambda s: batch.context_lens[s])
    device = batch.input_ids.device
    groups = []
    for first in range(0, len(decoding), DECODE_GROUP_SIZE):
        members = decoding[first : first + DECODE_GROUP_SIZE]
        num_blocks = -(-batch.context_lens[members[-1]] // block_size)
        rows = torch.tensor(members, device=device)
        tokens = batch.last_indices[rows]
        groups.append(
            _DecodeGroup(
                tokens=tokens,
                blocks=batch.block_tables[rows, :num_blocks].flatten(),
                positions=batch.positions[tokens].view(-1, 1, 1),
                keys=torch.arange(num_blocks * block_size, device=device),
            )
        )
    return groups
