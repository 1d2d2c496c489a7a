"""Llama-like models on a CPU, in as few passes over memory as they need.

The same weights as transformers' modules, and the same tokens.  What differs: the products of
queries, keys and values are one, and so are those of gate and up; weights are packed for the
processor; what lies between two products is one kernel (`kernels/layers.cpp`); only the tokens that
somebody waits for reach the output head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paged_engine.attention import CpuAttention
from paged_engine.batch import Batch
from paged_engine.kernels.library import Kernels, RopeCall
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.llama_family import LlamaLayer, LlamaModel, Norm, Product
from paged_engine.models.packed_linear import pack_linear
from paged_engine.models.product_trial import Linear


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, its weights packed, those of norms in fp32."""

    input_norm: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    has_rope: bool
    scale: float
    window: int | None
    output: Linear
    mlp_norm: Norm
    gate_and_up: Linear
    down: Linear


class LlamaRunner:
    """See :class:`paged_engine.models.ModelRunner`; for models that are Llama-like, on a CPU.

    Args:
        model: What is computed, and with which weights.
        kernels: What lies between the products.
        release: Whether the model's own weights are freed, layer by layer, as soon as they are
            packed.

    Attributes:
        name: See :class:`LlamaModel`.

    Weights are read once, here: what is done to the model's later has no effect.
    """

    def __init__(self, model: LlamaModel, kernels: Kernels, *, release: bool = False) -> None:
        self.name = model.name
        self.kv_shape = model.kv_shape
        self.max_model_len = model.max_model_len
        self.dtype = model.dtype
        self.device = model.device
        self.vocab_size = model.vocab_size
        self.eos_token_ids = model.eos_token_ids
        self._kernels = kernels
        self._attend = CpuAttention(kernels)
        self._num_heads = model.num_heads
        self._embedding = model.embedding
        self._rotation = model.rotation
        self._layers = []
        for number in range(model.num_layers):
            self._layers.append(_pack(kernels, model.layer(number)))
            if release:
                model.release(number)
        self._norm = _in_fp32(model.norm)
        self._head = _linear(kernels, model.head)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """See :class:`paged_engine.models.ModelRunner`."""
        norm = self._kernels.add_and_norm
        rope = self._rotation(batch.positions)
        x = self._embedding[batch.input_ids]
        normed = torch.empty_like(x)
        delta: torch.Tensor | None = None  # what the last product adds to x
        for number, layer in enumerate(self._layers):
            norm(x, delta, layer.input_norm.weight, layer.input_norm.epsilon, normed)
            attended = self._attention(layer, number, normed, rope, cache, batch)
            delta = layer.output(attended)
            norm(x, delta, layer.mlp_norm.weight, layer.mlp_norm.epsilon, normed)
            gate_and_up = layer.gate_and_up(normed)
            inner = gate_and_up.new_empty(x.shape[0], gate_and_up.shape[1] // 2)
            self._kernels.silu_and_multiply(gate_and_up, inner)
            delta = layer.down(inner)
        assert delta is not None
        last = x[batch.last_indices]
        normed = torch.empty_like(last)
        norm(last, delta[batch.last_indices], self._norm.weight, self._norm.epsilon, normed)
        return self._head(normed)

    def _attention(
        self,
        layer: _Layer,
        number: int,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        cache: PagedKVCache,
        batch: Batch,
    ) -> torch.Tensor:
        """`[T, num_heads * head_dim]`; keys and values are in the cache afterwards."""
        qkv = layer.qkv(x)
        num_tokens = x.shape[0]
        cos, sin = rope
        k_cache = cache.k[number]
        call = RopeCall(
            qkv=qkv.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=cache.v[number].data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            cos=cos.data_ptr() if layer.has_rope else None,
            sin=sin.data_ptr() if layer.has_rope else None,
            q_norm=None if layer.q_norm is None else layer.q_norm.weight.data_ptr(),
            k_norm=None if layer.k_norm is None else layer.k_norm.weight.data_ptr(),
            num_tokens=num_tokens,
            num_heads=self._num_heads,
            num_kv_heads=self.kv_shape.num_kv_heads,
            head_dim=self.kv_shape.head_dim,
            block_size=cache.block_size,
            num_slots=cache.num_blocks * cache.block_size,
            num_threads=torch.get_num_threads(),
            epsilon=0.0 if layer.q_norm is None else layer.q_norm.epsilon,
        )
        self._kernels.rope_and_write(call, self.dtype)
        heads = qkv.view(num_tokens, -1, self.kv_shape.head_dim)
        first_key, first_value = self._num_heads, self._num_heads + self.kv_shape.num_kv_heads
        q, k, v = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        attended = self._attend(
            q, k, v, number, cache, batch, scale=layer.scale, window=layer.window
        )
        return attended.view(num_tokens, -1)


def _pack(kernels: Kernels, layer: LlamaLayer) -> _Layer:
    return _Layer(
        input_norm=_in_fp32(layer.input_norm),
        qkv=_linear(kernels, layer.q, layer.k, layer.v),
        q_norm=None if layer.q_norm is None else _in_fp32(layer.q_norm),
        k_norm=None if layer.k_norm is None else _in_fp32(layer.k_norm),
        has_rope=layer.has_rope,
        scale=layer.scale,
        window=layer.window,
        output=_linear(kernels, layer.o),
        mlp_norm=_in_fp32(layer.mlp_norm),
        gate_and_up=_linear(kernels, layer.gate, layer.up),
        down=_linear(kernels, layer.down),
    )


def _linear(kernels: Kernels, *products: Product) -> Linear:
    biases = [product.bias for product in products if product.bias is not None]
    assert len(biases) in (0, len(products))
    return pack_linear(kernels, [product.weight for product in products], biases or None)


def _in_fp32(norm: Norm) -> Norm:
    return Norm(norm.weight.float().contiguous(), norm.epsilon)
