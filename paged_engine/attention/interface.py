"""What an attention backend is."""

from __future__ import annotations

from typing import Protocol

import torch

from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache


class Attend(Protocol):
    """Attention of T packed query tokens over the cached blocks of their sequences.

    Args:
        q: `[T, num_heads, head_dim]`, rope applied.
        k, v: `[T, num_kv_heads, head_dim]`, this step's; rope applied to k.
        layer: Which layer of `cache`.
        cache: It already holds k and v of this step, unless the backend has an attribute
            `fuses_write = True` and so writes them itself.
        batch: Whose tokens these are, and where their context lies.
        scale: Factor on the scores, usually `head_dim ** -0.5`.
        window: A query at position i sees positions j with `i - j < window`.  None: all.
        soft_cap: Scores s become `soft_cap * tanh(s / soft_cap)` (Gemma 2).
        sinks: `[num_heads]`, a score that takes part in the softmax and has no value.
        rope: Reserved for backends that apply the rotation themselves.

    Returns:
        `[T, num_heads, head_dim]`, the head_dim of v where that is another.
    """

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
    ) -> torch.Tensor: ...


def visible(
    query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Which keys a query may see: those before it and, with a window, not too far back.

    Args:
        query_positions: `[..., Q, 1]`.
        key_positions: `[..., 1, K]` or broadcastable.
        window: See :class:`Attend`.

    Returns:
        A boolean mask, `[..., Q, K]`.
    """
    mask = key_positions <= query_positions
    if window is not None:
        mask = mask & (key_positions > query_positions - window)
    return mask


def weighted_values(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    scale: float,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out: scores, cap, mask, softmax in fp32, sum.

    Args:
        q: `[..., Q, D]`.
        k, v: `[..., K, D]`, and `[..., K, E]`.
        mask: Boolean, broadcastable to `[..., Q, K]`.
        scale, soft_cap: See :class:`Attend`.
        sinks: Broadcastable to `[..., Q, 1]`.

    Returns:
        `[..., Q, E]`.
    """
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return weights.to(v.dtype) @ v
