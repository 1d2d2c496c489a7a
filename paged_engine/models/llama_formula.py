"""What a Llama-like model computes, in plain torch: one prompt, from beginning to end, no cache.

The fused path is held against this where transformers' modules were not loaded.  It is also the
shortest answer to the question what that path computes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from paged_engine.models.llama_family import LlamaModel, Norm, Product


def logits_of(model: LlamaModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits `[T, vocab_size]` for a prompt `[T]`."""
    head_dim = model.kv_shape.head_dim
    sharers = model.num_heads // model.kv_shape.num_kv_heads  # query heads of a KV head
    positions = torch.arange(len(ids))
    distance = positions[:, None] - positions
    rotation = model.rotation(positions)

    def heads(x: torch.Tensor, product: Product, norm: Norm | None = None) -> torch.Tensor:
        each = _multiply(x, product).view(len(ids), -1, head_dim).transpose(0, 1)
        return each if norm is None else _normed(each, norm)

    x = model.embedding[ids]
    for number in range(model.num_layers):
        layer = model.layer(number)
        normed = _normed(x, layer.input_norm)
        q, k = heads(normed, layer.q, layer.q_norm), heads(normed, layer.k, layer.k_norm)
        if layer.has_rope:
            q, k = _rotated(q, rotation), _rotated(k, rotation)
        k, v = (y.repeat_interleave(sharers, dim=0) for y in (k, heads(normed, layer.v)))
        sees = (distance >= 0) & (distance < (layer.window or len(ids)))
        attended = functional.scaled_dot_product_attention(q, k, v, sees, scale=layer.scale)
        x = x + _multiply(attended.transpose(0, 1).reshape(len(ids), -1), layer.o)
        normed = _normed(x, layer.mlp_norm)
        gated = functional.silu(_multiply(normed, layer.gate)) * _multiply(normed, layer.up)
        x = x + _multiply(gated, layer.down)
    return _multiply(_normed(x, model.norm), model.head)


def _multiply(x: torch.Tensor, product: Product) -> torch.Tensor:
    return functional.linear(x, product.weight, product.bias)


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    exact = x.float()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + norm.epsilon)
    return norm.weight * exact.to(x.dtype)


def _rotated(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns number i of a head with number i + head_dim / 2, by the angle of the position."""
    cos, sin = (angle.to(x.dtype) for angle in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
