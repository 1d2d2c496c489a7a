"""Any causal LM of transformers, with our paged attention in the place of its own.

transformers looks its attention function up by name in a registry at every call.  We register
one under our name, and point the model's configuration at it while a batch of ours is being
computed.  Outside of that the model is as its owner left it, `generate` included.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from paged_engine.attention import Attend
from paged_engine.batch import Batch, pack
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.request import Request

ATTENTION_NAME = "paged_engine"

PROBE_LENGTHS = (19, 7)  # more than one block of the usual size, and less

# Rope that depends on the longest sequence of the batch would make a request's tokens
# depend on its neighbours.
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})


@dataclass(slots=True)
class _Forward:
    """The step that is being computed: what the attention function needs beside q, k, v."""

    batch: Batch
    cache: PagedKVCache
    attend: Attend
    layers: list[int] = field(default_factory=list)  # those that have called, for the probe


# Some families pass no keyword arguments down to attention, so the batch cannot travel so.
_current: ContextVar[_Forward | None] = ContextVar("paged_engine_forward", default=None)


class TransformersRunner:
    """See :class:`paged_engine.models.ModelRunner`.

    Args:
        model: Any decoder-only model of transformers whose attention goes through its
            registry; it is put into evaluation mode.
        attend: The attention backend.

    Raises:
        UnsupportedModelError: The model is of a kind that cannot be served; it says which.
    """

    def __init__(self, model: PreTrainedModel, attend: Attend) -> None:
        _refuse_unservable(model)
        self.model = model.eval()
        self.attend = attend
        self.kv_shape = _kv_shape(model)
        self.dtype = model.dtype
        self.device = model.device
        text_config = model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_model_len = _max_model_len(text_config)
        self.eos_token_ids = _eos_token_ids(model)
        self._configs = _attention_configs(model)
        self._last_layers: list[int] = []

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """See :class:`paged_engine.models.ModelRunner`."""
        step = _Forward(batch, cache, self.attend)
        token = _current.set(step)
        try:
            with _attention_implementation(self._configs):
                output = self.model(
                    input_ids=batch.input_ids[None],
                    position_ids=batch.positions[None],
                    use_cache=False,
                    logits_to_keep=batch.last_indices,
                )
        finally:
            _current.reset(token)
            self._last_layers = step.layers
        logits: torch.Tensor = output.logits[0]
        return logits

    @torch.inference_mode()
    def probe(self, block_size: int) -> None:
        """Compute two packed prompts, then one more token of each, and compare with each alone.

        Raises:
            UnsupportedModelError: With what was wrong.
        """
        name = type(self.model).__name__
        requests, num_blocks = _probe_requests(self.vocab_size, self.max_model_len, block_size)
        cache = PagedKVCache(
            self.kv_shape, num_blocks, block_size, dtype=self.dtype, device=self.device
        )
        packed: list[torch.Tensor] = []
        try:
            prompts = [torch.tensor([r.token_ids], device=self.device) for r in requests]
            alone = [self.model(input_ids=p, use_cache=False).logits[0, -2:] for p in prompts]
            for _ in ("prefill", "decode"):
                counts = {r: max(1, r.num_tokens - 1 - r.num_computed_tokens) for r in requests}
                packed.append(self.forward(pack(counts, block_size, self.device), cache))
                for request, num_tokens in counts.items():
                    request.num_computed_tokens += num_tokens
        except Exception as error:
            raise UnsupportedModelError(
                f"{name} cannot be run with this attention function over packed prompts: "
                f"{type(error).__name__}: {error}"
            ) from error
        if sorted(self._last_layers) != list(range(self.kv_shape.num_layers)):
            raise UnsupportedModelError(
                f"{name} called the attention function for layers {self._last_layers}; expected "
                f"each of its {self.kv_shape.num_layers} layers once. Its attention does not go "
                f"through transformers' registry, so it cannot be paged"
            )
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        scale = max(1.0, *(float(logits.abs().max()) for logits in alone))
        for logits, expected in zip(torch.stack(packed, dim=1), alone, strict=True):
            difference = float((logits.float() - expected.float()).abs().max())
            if not difference <= tolerance * scale:
                raise UnsupportedModelError(
                    f"{name} gives other logits packed and paged than alone (they differ by "
                    f"{difference:.3g}, expected at most {tolerance * scale:.3g}): either the "
                    f"model does something this engine does not know, or the attention function "
                    f"is wrong"
                )


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: The attention module; `layer_idx` says which layer it is.
        query: `[1, num_heads, T, head_dim]`, rope applied.
        key, value: `[1, num_kv_heads, T, head_dim]`.
        attention_mask: Always None: the batch says who sees what.
        scaling, sliding_window, softcap, s_aux: See `scale`, `window`, `soft_cap` and `sinks`
            of :class:`paged_engine.attention.Attend`.

    Returns:
        `[1, T, num_heads, head_dim]`, and no weights.
    """
    step = _current.get()
    if step is None:
        raise UnsupportedModelError(
            f"the attention {ATTENTION_NAME!r} works only inside ContinuousEngine.step(); to run "
            f"the model alone, use model.set_attn_implementation('sdpa')"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    step.layers.append(layer)
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
        window=sliding_window,
        soft_cap=softcap,
        sinks=s_aux,
    )
    return out[None], None


AttentionInterface.register(ATTENTION_NAME, paged_attention)


@contextmanager
def _attention_implementation(configs: list[Any]) -> Iterator[None]:
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that some module of the model reads."""
    found = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def _kv_shape(model: PreTrainedModel) -> KVCacheShape:
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return KVCacheShape(config.num_hidden_layers, num_kv_heads, head_dim)


def _max_model_len(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 2048


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _refuse_unservable(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"the model is a {name}; expected a causal language model of transformers, for "
            f"example AutoModelForCausalLM.from_pretrained(...), or an object with the "
            f"attributes of paged_engine.models.ModelRunner"
        )
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} has an encoder; expected a decoder-only model")
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name} has no language-model head; load it with AutoModelForCausalLM"
        )
    parameters = inspect.signature(model.forward).parameters
    if missing := [n for n in ("position_ids", "logits_to_keep") if n not in parameters]:
        raise UnsupportedModelError(
            f"{name}.forward takes no {' and no '.join(missing)}, which packed prompts need"
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    kinds = {str(part.get("rope_type", part.get("type"))) for part in parts}
    if by_length := sorted(kinds & _ROPE_BY_LENGTH):
        raise UnsupportedModelError(
            f"{name} uses rope of type {', '.join(by_length)}, which looks at the longest request "
            f"of the batch, so that a request's tokens would depend on its neighbours"
        )


def _probe_requests(
    vocab_size: int, max_model_len: int, block_size: int
) -> tuple[list[Request], int]:
    """Two prompts, in blocks handed out from the last to the first, and how many blocks."""
    lengths = [max(2, min(n, max_model_len)) for n in PROBE_LENGTHS]
    requests = [
        Request(str(n), [(37 * n + 11 * i) % vocab_size for i in range(n)]) for n in lengths
    ]
    counts = [-(-request.num_tokens // block_size) for request in requests]
    ids = list(range(sum(counts)))
    for request, count in zip(requests, counts, strict=True):
        request.block_table = [ids.pop() for _ in range(count)]
    return requests, sum(counts)
