"""What a Llama-like model is, to the letter, and where transformers keeps it.

A fused path computes what it believes a model to be.  So it takes only classes of transformers that
it knows, with modules that nobody has changed: no hooks, no adapters, no quantised weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import KVCacheShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paged_engine.models.transformers_runner import TransformersRunner

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "SmolLM3")
CLASS_ENDING = "ForCausalLM"

Rotation = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Positions `[T]` to cos and sin of each, `[T, head_dim]`, dense, in fp32."""


@dataclass(frozen=True, slots=True)
class Product:
    """`x @ weight.T + bias`: `[out, in]` and `[out]`, or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """A root mean square norm with a weight `[width]`."""

    weight: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One layer.

    Attributes:
        q_norm, k_norm: The norm of each head before the rotation (Qwen3), or None.
        has_rope: Whether queries and keys are rotated (SmolLM3 leaves it out in some layers).
        scale: What scores are multiplied with.
        window: So many keys a query sees, itself included; None: all.
    """

    input_norm: Norm
    q: Product
    k: Product
    v: Product
    o: Product
    q_norm: Norm | None
    k_norm: Norm | None
    has_rope: bool
    scale: float
    window: int | None
    mlp_norm: Norm
    gate: Product
    up: Product
    down: Product


class LlamaModel(Protocol):
    """A Llama-like model, wherever its weights are.

    Attributes:
        name: Of where it came from, or its class in transformers.
        embedding: `[vocab_size, width]`.
        norm, head: What comes after the last layer.
        The others: See :class:`paged_engine.models.ModelRunner`.
    """

    name: str
    num_layers: int
    num_heads: int
    embedding: torch.Tensor
    norm: Norm
    head: Product
    rotation: Rotation
    kv_shape: KVCacheShape
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]

    def layer(self, number: int) -> LlamaLayer:
        """A layer, from 0 on."""
        ...

    def release(self, number: int) -> None:
        """Free what only that layer needs; the model cannot be run afterwards."""
        ...


class LlamaOfTransformers:
    """See :class:`LlamaModel`; a model of which `is_llama_like` is true.

    Args:
        runner: The model as transformers' modules compute it.
    """

    def __init__(self, runner: TransformersRunner) -> None:
        self._model = runner.model
        self._windows = runner.windows
        inner: Any = runner.model.model
        self._layers = inner.layers
        self.rotation: Rotation = partial(_rotation, inner.rotary_emb)
        self.name = runner.name
        self.num_layers = len(inner.layers)
        self.num_heads: int = runner.model.config.num_attention_heads
        self.embedding: torch.Tensor = inner.embed_tokens.weight.detach()
        self.norm = _norm(inner.norm)
        self.head = _product(runner.model.lm_head)
        self.kv_shape = runner.kv_shape
        self.dtype = runner.dtype
        self.device = runner.device
        self.vocab_size = runner.vocab_size
        self.max_model_len = runner.max_model_len
        self.eos_token_ids = runner.eos_token_ids

    def layer(self, number: int) -> LlamaLayer:
        """See :class:`LlamaModel`."""
        layer = self._layers[number]
        attention, mlp = layer.self_attn, layer.mlp
        return LlamaLayer(
            input_norm=_norm(layer.input_layernorm),
            q=_product(attention.q_proj),
            k=_product(attention.k_proj),
            v=_product(attention.v_proj),
            o=_product(attention.o_proj),
            q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            has_rope=bool(getattr(attention, "use_rope", True)),
            scale=float(attention.scaling),
            window=self._windows[number],
            mlp_norm=_norm(layer.post_attention_layernorm),
            gate=_product(mlp.gate_proj),
            up=_product(mlp.up_proj),
            down=_product(mlp.down_proj),
        )

    def release(self, number: int) -> None:
        """See :class:`LlamaModel`; the model says so to whoever runs it."""
        for module in self._layers[number].modules():
            if isinstance(module, nn.Linear):
                weight = module.weight.detach().to("meta")
                module.weight = nn.Parameter(weight, requires_grad=False)
        _refuse_to_run(self._model)


def is_llama_like(model: Any) -> bool:
    """Whether :class:`LlamaOfTransformers` tells all that the model does."""
    kind = type(model)
    family = kind.__name__.removesuffix(CLASS_ENDING)
    if family not in FAMILIES or not kind.__module__.startswith("transformers.models."):
        return False
    return all(_is_unchanged(module, family) for module in model.modules()) and all(
        isinstance(layer.self_attn.q_proj, nn.Linear) and _has_silu(layer.mlp)
        for layer in model.model.layers
    )


def num_weights(model: PreTrainedModel) -> int:
    """How many numbers a runner would pack."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(module.weight.numel() for module in linears)


def _rotation(rotary: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    like = torch.empty(0)  # says type and device
    cos, sin = rotary(like, positions[None])
    return cos[0].contiguous(), sin[0].contiguous()


def _product(module: Any) -> Product:
    return Product(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), float(module.variance_epsilon))


def _refuse_to_run(model: PreTrainedModel) -> None:
    """Let a model whose weights were freed say so."""

    def forward(*_: Any, **__: Any) -> None:
        raise UnsupportedModelError(
            f"the weights of this {type(model).__name__} were packed for an engine and freed; load "
            f"it apart from the engine to run it yourself, and hand it to ContinuousEngine(model)"
        )

    model.forward = forward


def _is_unchanged(module: nn.Module, family: str) -> bool:
    """Whether a module is as transformers or torch made it, and does what its class says."""
    kind = type(module)
    ours = kind.__module__.startswith("transformers.") and (
        kind.__name__.startswith(family) or kind.__module__ == "transformers.activations"
    )
    known = kind in (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU) or ours
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return known and not hooked and not hasattr(module, "parametrizations")


def _has_silu(mlp: Any) -> bool:
    x = torch.linspace(-4, 4, 9)
    return torch.equal(mlp.act_fn(x), nn.functional.silu(x))
