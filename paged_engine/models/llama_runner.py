"""Llama-like models on a CPU, in as few passes over memory as they need.

The same weights as transformers' modules, and the same tokens.  What differs: the products of
queries, keys and values are one, and so are those of gate and up; weights are packed for the
processor; what lies between two products is one kernel (`kernels/layers.cpp`); only the tokens that
somebody waits for reach the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paged_engine.attention import CpuAttention
from paged_engine.batch import Batch
from paged_engine.kernels.library import Kernels, RopeCall
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.llama_family import (
    LlamaLayer,
    layers_of,
    refuse_to_run,
    release_weights,
)
from paged_engine.models.packed_linear import Linear, pack_linear
from paged_engine.models.transformers_runner import TransformersRunner


@dataclass(frozen=True, slots=True)
class _Norm:
    """A root mean square norm; the weight in fp32."""

    weight: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, its weights packed."""

    input_norm: _Norm
    qkv: Linear
    q_norm: _Norm | None
    k_norm: _Norm | None
    has_rope: bool
    scale: float
    window: int | None
    output: Linear
    mlp_norm: _Norm
    gate_and_up: Linear
    down: Linear


class LlamaRunner:
    """See :class:`paged_engine.models.ModelRunner`; for models that are Llama-like, on a CPU.

    Args:
        runner: The same model, as transformers' modules compute it.
        kernels: What lies between the products.
        release: Whether the model's own weights are freed, layer by layer, as soon as they are
            packed; it cannot be run by transformers afterwards, and says so.

    Weights are read once, here: what is done to the model's later has no effect.
    """

    def __init__(
        self, runner: TransformersRunner, kernels: Kernels, *, release: bool = False
    ) -> None:
        self.model = runner.model
        self.kv_shape = runner.kv_shape
        self.max_model_len = runner.max_model_len
        self.dtype = runner.dtype
        self.device = runner.device
        self.vocab_size = runner.vocab_size
        self.eos_token_ids = runner.eos_token_ids
        self._kernels = kernels
        self._attend = CpuAttention(kernels)
        inner: Any = runner.model.model
        self._embedding: torch.Tensor = inner.embed_tokens.weight.detach()
        self._rotary = inner.rotary_emb
        self._layers = []
        for layer, window in zip(layers_of(runner.model), runner.windows, strict=True):
            self._layers.append(_pack(kernels, layer, window))
            if release:
                release_weights(layer)
        self._num_heads: int = runner.model.config.num_attention_heads
        self._norm = _norm(inner.norm)
        self._head = _linear(kernels, runner.model.lm_head)
        if release:
            refuse_to_run(runner.model)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """See :class:`paged_engine.models.ModelRunner`."""
        norm = self._kernels.add_and_norm
        rope = self._rope(batch)
        x = self._embedding[batch.input_ids]
        normed = torch.empty_like(x)
        delta: torch.Tensor | None = None  # what the last product adds to x
        for number, layer in enumerate(self._layers):
            norm(x, delta, layer.input_norm.weight, layer.input_norm.epsilon, normed)
            attended = self._attention(layer, number, normed, rope, cache, batch)
            delta = layer.output(attended)
            norm(x, delta, layer.mlp_norm.weight, layer.mlp_norm.epsilon, normed)
            gate_and_up = layer.gate_and_up(normed)
            inner = gate_and_up.new_empty(len(x), gate_and_up.shape[1] // 2)
            self._kernels.silu_and_multiply(gate_and_up, inner)
            delta = layer.down(inner)
        assert delta is not None
        last = x[batch.last_indices]
        normed = torch.empty_like(last)
        norm(last, delta[batch.last_indices], self._norm.weight, self._norm.epsilon, normed)
        return self._head(normed)

    def _rope(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the batch's positions, each `[T, head_dim]` in fp32."""
        like = torch.empty(0)  # says type and device
        cos, sin = self._rotary(like, batch.positions[None])
        return cos[0].contiguous(), sin[0].contiguous()

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
            num_tokens=len(x),
            num_heads=self._num_heads,
            num_kv_heads=self.kv_shape.num_kv_heads,
            head_dim=self.kv_shape.head_dim,
            block_size=cache.block_size,
            num_slots=cache.num_blocks * cache.block_size,
            num_threads=torch.get_num_threads(),
            epsilon=0.0 if layer.q_norm is None else layer.q_norm.epsilon,
        )
        self._kernels.rope_and_write(call, self.dtype)
        heads = qkv.view(len(x), -1, self.kv_shape.head_dim)
        first_key, first_value = self._num_heads, self._num_heads + self.kv_shape.num_kv_heads
        q, k, v = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        attended = self._attend(
            q, k, v, number, cache, batch, scale=layer.scale, window=layer.window
        )
        return attended.view(len(x), -1)


def _pack(kernels: Kernels, layer: LlamaLayer, window: int | None) -> _Layer:
    return _Layer(
        input_norm=_norm(layer.input_norm),
        qkv=_linear(kernels, layer.q, layer.k, layer.v),
        q_norm=None if layer.q_norm is None else _norm(layer.q_norm),
        k_norm=None if layer.k_norm is None else _norm(layer.k_norm),
        has_rope=layer.has_rope,
        scale=layer.scale,
        window=window,
        output=_linear(kernels, layer.o),
        mlp_norm=_norm(layer.mlp_norm),
        gate_and_up=_linear(kernels, layer.gate, layer.up),
        down=_linear(kernels, layer.down),
    )


def _linear(kernels: Kernels, *modules: Any) -> Linear:
    biases: Sequence[torch.Tensor] | None = None
    if any(module.bias is not None for module in modules):
        biases = [module.bias for module in modules]
    return pack_linear(kernels, [module.weight for module in modules], biases)


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach().float().contiguous(), float(module.variance_epsilon))
