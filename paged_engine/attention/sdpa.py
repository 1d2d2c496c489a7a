"""Gather the blocks, then let torch's scaled_dot_product_attention do the arithmetic.

Sequences go in groups that have the same number of query tokens: those that decode in groups
of similar length, so that little is padded; each chunk of a prompt is a group of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
class _Group:
    """G sequences with Q query tokens each, and room for K keys.

    Attributes:
        tokens: `[G, Q]`, places in the packed batch.
        rows: `[G * num_kv_heads * num_blocks]`, which rows of a layer's cache, seen as
            `[num_blocks * num_kv_heads, block_size * head_dim]`, hold their keys, in order of
            sequence, head and position.
        positions: `[G, 1, Q, 1]`, of the query tokens.
        keys: `[K]`, the position of each gathered key.
        masks: `[G, 1, Q, K]` for each window that some layer has.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    keys: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """Who sees whom, made once a step."""
        if window not in self.masks:
            self.masks[window] = visible(self.positions, self.keys, window)
        return self.masks[window]


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
        if "sdpa" not in batch.memo:
            batch.memo["sdpa"] = _groups(batch, cache.k.shape[2], cache.block_size)
        groups: list[_Group] = batch.memo["sdpa"]
        how = _Options(scale, window, soft_cap, sinks)
        out = q.new_empty(*q.shape[:2], cache.v.shape[-1])
        for group in groups:
            out[group.tokens] = self._attend(q[group.tokens], group, layer, cache, how)
        return out

    def _attend(
        self, q: torch.Tensor, group: _Group, layer: int, cache: PagedKVCache, how: _Options
    ) -> torch.Tensor:
        """`[G, Q, num_heads, value_dim]`, of q `[G, Q, num_heads, head_dim]`."""
        size, num_queries, num_heads, head_dim = q.shape
        num_kv_heads = cache.k.shape[2]
        heads_per_kv = num_heads // num_kv_heads
        k, v = (
            self._gather(name, tensor[layer], group.rows).view(
                size, num_kv_heads, -1, tensor.shape[-1]
            )
            for name, tensor in (("k", cache.k), ("v", cache.v))
        )
        mask = group.mask(how.window)
        if num_queries > 1:
            mask = mask.repeat(1, 1, heads_per_kv, 1)
        # GQA: the query heads of a group are stacked as more queries of their one KV head
        stacked = q.transpose(1, 2).reshape(size, num_kv_heads, -1, head_dim)
        if how.soft_cap is None and how.sinks is None:
            out = F.scaled_dot_product_attention(stacked, k, v, attn_mask=mask, scale=how.scale)
        else:  # torch has no argument for these
            sinks = how.sinks
            if sinks is not None:
                sinks = sinks.repeat_interleave(num_queries).view(1, num_kv_heads, -1, 1)
            out = weighted_values(
                stacked, k, v, mask, scale=how.scale, soft_cap=how.soft_cap, sinks=sinks
            )
        return out.view(size, num_heads, num_queries, -1).transpose(1, 2)

    def _gather(self, name: str, blocks: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`[len(rows), block_size * head_dim]`, valid until the next call with this name."""
        width = blocks.shape[2] * blocks.shape[3]
        scratch = self._scratch.get(name)
        if (
            scratch is None
            or scratch.numel() < len(rows) * width
            or scratch.dtype != blocks.dtype
            or scratch.device != blocks.device
        ):
            scratch = self._scratch[name] = blocks.new_empty(len(rows) * width)
        target = scratch[: len(rows) * width].view(len(rows), width)
        return torch.index_select(blocks.view(-1, width), 0, rows, out=target)


def _groups(batch: Batch, num_kv_heads: int, block_size: int) -> list[_Group]:
    lengths = batch.query_lens
    groups = [[s] for s, length in enumerate(lengths) if length > 1]
    decoding = [s for s, length in enumerate(lengths) if length == 1]
    decoding.sort(key=lambda s: batch.context_lens[s])
    for first in range(0, len(decoding), DECODE_GROUP_SIZE):
        groups.append(decoding[first : first + DECODE_GROUP_SIZE])
    return [_group(batch, members, num_kv_heads, block_size) for members in groups]


def _group(batch: Batch, members: list[int], num_kv_heads: int, block_size: int) -> _Group:
    device = batch.input_ids.device
    num_blocks = -(-max(batch.context_lens[s] for s in members) // block_size)
    tokens = torch.tensor(
        [list(range(batch.query_starts[s], batch.query_starts[s + 1])) for s in members],
        device=device,
    )
    tables = batch.block_tables[torch.tensor(members, device=device), :num_blocks]
    heads = torch.arange(num_kv_heads, device=device)
    rows = tables[:, None, :] * num_kv_heads + heads[None, :, None]
    return _Group(
        tokens=tokens,
        rows=rows.flatten(),
        positions=batch.positions[tokens][:, None, :, None],
        keys=torch.arange(num_blocks * block_size, device=device),
    )
