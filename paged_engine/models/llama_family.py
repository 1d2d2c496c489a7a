"""Which models are Llama-like to the letter, and where their weights are.

A fused path computes what it believes a model to be.  So it takes only classes of transformers that
it knows, with modules that nobody has changed: no hooks, no adapters, no quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from paged_engine.errors import UnsupportedModelError

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "SmolLM3")


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """The modules of one layer.

    Attributes:
        q_norm, k_norm: The norm of each head before the rotation (Qwen3), or None.
        has_rope: Whether queries and keys are rotated (SmolLM3 leaves it out in some layers).
    """

    input_norm: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    has_rope: bool
    scale: float
    mlp_norm: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear


def is_llama_like(model: Any) -> bool:
    """Whether `layers_of` tells all that the model does."""
    kind = type(model)
    family = kind.__name__.removesuffix("ForCausalLM")
    if family not in FAMILIES or not kind.__module__.startswith("transformers.models."):
        return False
    return all(_is_unchanged(module, family) for module in model.modules()) and all(
        isinstance(layer.self_attn.q_proj, nn.Linear) and _has_silu(layer.mlp)
        for layer in model.model.layers
    )


def layers_of(model: PreTrainedModel) -> Iterator[LlamaLayer]:
    """The layers of a model that is Llama-like."""
    inner: Any = model.model
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield LlamaLayer(
            input_norm=layer.input_layernorm,
            q=attention.q_proj,
            k=attention.k_proj,
            v=attention.v_proj,
            o=attention.o_proj,
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
            has_rope=bool(getattr(attention, "use_rope", True)),
            scale=float(attention.scaling),
            mlp_norm=layer.post_attention_layernorm,
            gate=mlp.gate_proj,
            up=mlp.up_proj,
            down=mlp.down_proj,
        )


def num_weights(model: PreTrainedModel) -> int:
    """How many numbers a runner would pack."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(module.weight.numel() for module in linears)


def release_weights(layer: LlamaLayer) -> None:
    """Free the weights of a layer's products."""
    for linear in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
        linear.weight = nn.Parameter(linear.weight.detach().to("meta"), requires_grad=False)


def refuse_to_run(model: PreTrainedModel) -> None:
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
