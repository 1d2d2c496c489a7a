"""Llama-like models on a CPU, in as few passes over memory as they need.

The same weights as transformers' modules, and the same tokens.  What differs: the products of
queries, keys and values are one, and so are those of gate and up; weights are packed for the
processor; what lies between two products is one kernel (`kernels/layers.cpp`); only the tokens that
somebody waits for reach the output head; and a step of as many tokens as one before it makes that
one's calls again, from a tape (`kernels/tape.py`).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from paged_engine.attention import CpuAttention
from paged_engine.batch import Batch
from paged_engine.kernels.library import AttentionCall, Kernels, RopeCall, check_slots
from paged_engine.kernels.tape import Tape
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.llama_family import LlamaLayer, LlamaModel, Norm, Product
from paged_engine.models.packed_linear import PanelLinear, pack_linear
from paged_engine.models.product_trial import Linear

MOST_TAPED = 64  # tokens of a step; with more, what Python takes does not count

Rope = tuple[torch.Tensor, torch.Tensor]


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
    inner: int  # columns of gate, and of up
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
        self._room = _Room(MOST_TAPED, self.dtype)
        self._tapes: dict[tuple[int, int], _Taped] = {}
        self._taped_for: weakref.ref[PagedKVCache] | None = None

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """See :class:`paged_engine.models.ModelRunner`."""
        count = batch.num_tokens
        room = self._room if count <= MOST_TAPED else _Room(count, self.dtype)
        x = room("x", count, self._embedding.shape[1])
        torch.index_select(self._embedding, 0, batch.input_ids, out=x)
        rope = self._rotation(batch.positions)
        if room is self._room and isinstance(self._head, PanelLinear):
            delta = self._layers_from_tape(x, rope, cache, batch)
        else:
            delta = self._compute_layers(room, x, rope, cache, batch)
        last = x[batch.last_indices]
        normed = torch.empty_like(last)
        self._add_and_norm(last, delta[batch.last_indices], self._norm, normed)
        return self._head(normed)

    def _layers_from_tape(
        self, x: torch.Tensor, rope: Rope, cache: PagedKVCache, batch: Batch
    ) -> torch.Tensor:
        """As `_compute_layers`, recorded the first time, and replayed later."""
        if self._taped_for is None or self._taped_for() is not cache:
            self._tapes.clear()  # calls name its memory
            self._taped_for = weakref.ref(cache)
        kind = (x.shape[0], torch.get_num_threads())
        if kind not in self._tapes:
            with self._kernels.record() as tape:
                delta = self._compute_layers(self._room, x, rope, cache, batch)
            self._tapes[kind] = _Taped(tape, tape.calls(RopeCall), tape.calls(AttentionCall), delta)
            return delta
        taped = self._tapes[kind]
        cos, sin, slots = rope[0].data_ptr(), rope[1].data_ptr(), batch.slot_mapping.data_ptr()
        for call, layer in zip(taped.ropes, self._layers, strict=True):
            call.slots = slots
            if layer.has_rope:
                call.cos, call.sin = cos, sin
        self._attend.renew(taped.attentions, cache, batch)
        check_slots(taped.tape.replay(), cache.num_blocks * cache.block_size)
        return taped.delta

    def _compute_layers(
        self, room: _Room, x: torch.Tensor, rope: Rope, cache: PagedKVCache, batch: Batch
    ) -> torch.Tensor:
        """All layers over x; keys and values are in the cache afterwards.

        Returns:
            What the last product adds to x, which has all the others' already.
        """
        count, width = x.shape
        normed = room("normed", count, width)
        delta: torch.Tensor | None = None  # what the last product adds to x
        for number, layer in enumerate(self._layers):
            self._add_and_norm(x, delta, layer.input_norm, normed)
            attended = self._attention(room, layer, number, normed, rope, cache, batch)
            delta = layer.output(attended, room("delta", count, width))
            self._add_and_norm(x, delta, layer.mlp_norm, normed)
            gate_and_up = layer.gate_and_up(normed, room("gate_and_up", count, 2 * layer.inner))
            inner = room("inner", count, layer.inner)
            self._kernels.silu_and_multiply(gate_and_up, inner)
            delta = layer.down(inner, room("delta", count, width))
        assert delta is not None
        return delta

    def _add_and_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, norm: Norm, out: torch.Tensor
    ) -> None:
        self._kernels.add_and_norm(x, delta, norm.weight, norm.epsilon, out)

    def _attention(
        self,
        room: _Room,
        layer: _Layer,
        number: int,
        x: torch.Tensor,
        rope: Rope,
        cache: PagedKVCache,
        batch: Batch,
    ) -> torch.Tensor:
        """`[T, num_heads * head_dim]`; keys and values are in the cache afterwards."""
        num_tokens, (cos, sin), shape = x.shape[0], rope, self.kv_shape
        num_heads, num_kv_heads, head_dim = self._num_heads, shape.num_kv_heads, shape.head_dim
        qkv = layer.qkv(x, room("qkv", num_tokens, (num_heads + 2 * num_kv_heads) * head_dim))
        call = RopeCall(
            qkv=qkv.data_ptr(),
            k_cache=cache.k[number].data_ptr(),
            v_cache=cache.v[number].data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            cos=cos.data_ptr() if layer.has_rope else None,
            sin=sin.data_ptr() if layer.has_rope else None,
            q_norm=None if layer.q_norm is None else layer.q_norm.weight.data_ptr(),
            k_norm=None if layer.k_norm is None else layer.k_norm.weight.data_ptr(),
            num_tokens=num_tokens,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=cache.block_size,
            num_slots=cache.num_blocks * cache.block_size,
            num_threads=torch.get_num_threads(),
            epsilon=0.0 if layer.q_norm is None else layer.q_norm.epsilon,
        )
        self._kernels.rope_and_write(call, self.dtype)
        heads = qkv.view(num_tokens, -1, head_dim)
        first_key, first_value = num_heads, num_heads + num_kv_heads
        q, k, v = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        attended = room("attended", num_tokens, num_heads * head_dim)
        self._attend(
            *(q, k, v, number, cache, batch),
            scale=layer.scale,
            window=layer.window,
            out=attended.view(num_tokens, num_heads, head_dim),
        )
        return attended


@dataclass(frozen=True, slots=True)
class _Taped:
    """The layers of a step, to be computed again over what lies in the room by then.

    Attributes:
        tape: All calls.
        ropes, attentions: Those among them that name what is new in each step.
        delta: See `_compute_layers`.
    """

    tape: Tape
    ropes: list[RopeCall]
    attentions: list[AttentionCall]
    delta: torch.Tensor


class _Room:
    """Memory for what lies between two kernels: the same for all layers, and from step to step.

    Args:
        most_tokens: Of a step.
        dtype: Of all that lies in it.
    """

    def __init__(self, most_tokens: int, dtype: torch.dtype) -> None:
        self._most_tokens = most_tokens
        self._dtype = dtype
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, num_tokens: int, width: int) -> torch.Tensor:
        """`[num_tokens, width]`, dense; whatever was put there last is in it."""
        if name not in self._kept:
            self._kept[name] = torch.empty(self._most_tokens, width, dtype=self._dtype)
        return self._kept[name][:num_tokens]


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
        inner=layer.up.weight.shape[0],
        down=_linear(kernels, layer.down),
    )


def _linear(kernels: Kernels, *products: Product) -> Linear:
    biases = [product.bias for product in products if product.bias is not None]
    assert len(biases) in (0, len(products))
    return pack_linear(kernels, [product.weight for product in products], biases or None)


def _in_fp32(norm: Norm) -> Norm:
    return Norm(norm.weight.float().contiguous(), norm.epsilon)
