"""Any causal LM of transformers, with our paged attention in the place of its own.

We register an attention function under our name, and point the model's configuration at it
while a batch of ours is being computed.  Outside of that the model is as its owner left it,
`generate` included.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from paged_engine.attention import Attend
from paged_engine.batch import Batch
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.attention_registry import attention_configs, attention_implementation
from paged_engine.models.observation import observe
from paged_engine.models.probe import Probe
from paged_engine.models.requirements import (
    kv_shape,
    refuse_unpageable,
    refuse_unservable,
    servable_length,
    trained_length,
)

ATTENTION_NAME = "paged_engine"


@dataclass(slots=True)
class _Forward:
    """The step that is being computed: what the attention function needs beside q, k, v."""

    batch: Batch
    cache: PagedKVCache
    attend: Attend
    windows: Sequence[int | None]  # of each layer


# Some families pass no keyword arguments down to attention, so the batch cannot travel so.
_current: ContextVar[_Forward | None] = ContextVar("paged_engine_forward", default=None)


class TransformersRunner:
    """See :class:`paged_engine.models.ModelRunner`.

    Args:
        model: Any decoder-only model of transformers whose attention goes through its
            registry; it is put into evaluation mode, and run once to see how it attends.
        attend: The attention backend.

    Attributes:
        name: The last part of where the model came from, or its class.
        windows: For each layer how many keys a query sees, itself included; None: all.

    Raises:
        UnsupportedModelError: The model is of a kind that cannot be served; it says which.
    """

    def __init__(self, model: PreTrainedModel, attend: Attend) -> None:
        refuse_unservable(model)
        self.model = model.eval()
        self.attend = attend
        came_from = getattr(model.config, "name_or_path", None) or ""
        self.name = Path(came_from).name or type(model).__name__
        config = model.config.get_text_config()
        length = trained_length(config)
        calls = observe(model, length)
        refuse_unpageable(model, calls, length)
        self.kv_shape = kv_shape(calls)
        self.windows = [call.sight.window for call in sorted(calls, key=lambda c: c.layer)]
        self.max_model_len = servable_length(length, calls)
        self.dtype = model.dtype
        self.device = model.device
        self.vocab_size: int = config.vocab_size
        self.eos_token_ids = _eos_token_ids(model)
        self._configs = attention_configs(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """See :class:`paged_engine.models.ModelRunner`."""
        step = _Forward(batch, cache, self.attend, self.windows)
        wanted = {"logits_to_keep": batch.last_indices} if self._keeps_logits else {}
        token = _current.set(step)
        try:
            with attention_implementation(self._configs, ATTENTION_NAME):
                output = self.model(
                    input_ids=batch.input_ids[None],
                    position_ids=batch.positions[None],
                    use_cache=False,
                    **wanted,
                )
        finally:
            _current.reset(token)
        logits: torch.Tensor = output.logits[0]
        return logits if self._keeps_logits else logits[batch.last_indices]

    def probe(self, block_size: int) -> Probe:
        """What the model says alone, as transformers runs it.

        Raises:
            UnsupportedModelError: It cannot be run.
        """
        return Probe(
            type(self.model).__name__,
            lambda ids: self.model(input_ids=ids[None], use_cache=False).logits[0],
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            device=self.device,
            block_size=block_size,
        )


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: The attention module; `layer_idx` says which layer it is.
        query: `[1, num_heads, T, head_dim]`, rope applied.
        key, value: `[1, num_kv_heads, T, head_dim]`, value with its own head_dim.
        attention_mask: Always None: the batch says who sees what.
        scaling, softcap, s_aux: See `scale`, `soft_cap` and `sinks` of
            :class:`paged_engine.attention.Attend`.

    Returns:
        `[1, T, num_heads, value_dim]`, and no weights.
    """
    step = _current.get()
    if step is None:
        raise UnsupportedModelError(
            f"the attention {ATTENTION_NAME!r} works only inside ContinuousEngine.step(); to run "
            f"the model alone, use model.set_attn_implementation('sdpa')"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if not getattr(step.attend, "fuses_write", False):
        step.cache.write(layer, k, v, step.batch.slot_mapping)
    out = step.attend(
        q,
        k,
        v,
        layer,
        step.cache,
        step.batch,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=step.windows[layer],
        soft_cap=softcap,
        sinks=s_aux,
    )
    return out[None], None


AttentionInterface.register(ATTENTION_NAME, paged_attention)


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
