"""What a model must be so that its requests can be packed and paged, and up to which length."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache, PreTrainedModel

from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import KVCacheShape
from paged_engine.models.observation import AttentionCall

# Rope of this type turns all sequences of a batch in another way if the longest of them is longer
# than the model was first trained for.
_ROPE_BY_LENGTH = "longrope"


def refuse_unservable(model: PreTrainedModel) -> None:
    """Refuse what can be told without running it.

    Raises:
        UnsupportedModelError: With the reason.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"the model is a {name}; expected a causal language model of transformers, for "
            f"example AutoModelForCausalLM.from_pretrained(...), or an object with the "
            f"attributes of paged_engine.models.ModelRunner"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} has an encoder; expected a decoder-only model")
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name} has no language-model head; load it with AutoModelForCausalLM"
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(
            f"{name}.forward takes no position_ids, which packed prompts need"
        )


def refuse_unpageable(model: PreTrainedModel, calls: Sequence[AttentionCall], length: int) -> None:
    """Refuse a model whose calls of the attention function cannot be served, up to `length`.

    Raises:
        UnsupportedModelError: With the reason.
    """
    name = type(model).__name__
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = [call.layer for call in calls]
    if not layers:
        raise UnsupportedModelError(
            f"{name} never called the attention function: its attention does not go through "
            f"transformers' registry, so it cannot be paged"
        )
    if sorted(layers) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{name} called the attention function for layers {layers}; expected each of its "
            f"{num_layers} layers once. What the others keep of a sequence cannot be paged"
        )
    shapes = {(call.num_kv_heads, call.head_dim, call.value_dim) for call in calls}
    if len(shapes) > 1:
        sizes = ", ".join(f"{n} heads of {k} and {v}" for n, k, v in sorted(shapes))
        raise UnsupportedModelError(
            f"the keys and values of {name}'s layers differ in size ({sizes}); expected the same "
            f"in all, since they share one tensor of blocks"
        )
    if unknown := sorted({option for call in calls for option in call.unknown}):
        raise UnsupportedModelError(
            f"the attention of {name} uses {', '.join(unknown)}, which this engine does not know"
        )
    if any(not call.sight.is_known for call in calls):
        raise UnsupportedModelError(
            f"{name} masks attention neither causally nor by a sliding window or chunks; other "
            f"masks cannot be paged"
        )
    kept_by_cache = _kept_by_cache(model)
    for call in calls:
        kept = kept_by_cache.get(call.layer, length)
        if kept < length and kept not in (call.sight.window, call.sight.chunk):
            raise UnsupportedModelError(
                f"in {name}'s layer {call.layer} a token sees {call.sight} but transformers' "
                f"cache keeps the last {kept} tokens, so that generate is not the model's forward "
                f"pass"
            )


def kv_shape(calls: Sequence[AttentionCall]) -> KVCacheShape:
    """The shape of the keys and values that a model writes."""
    first = calls[0]
    value_dim = None if first.value_dim == first.head_dim else first.value_dim
    return KVCacheShape(len(calls), first.num_kv_heads, first.head_dim, value_dim)


def trained_length(config: Any) -> int:
    """The positions that a model was made for, by its configuration (of the text part).

    With rope that depends on the length only those up to which it does not.  (That of type
    "dynamic" depends on it only behind `max_position_embeddings`.)
    """
    length = 2048
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            length = value
            break
    for rope in _rope_parameters(config):
        if rope.get("rope_type", rope.get("type")) == _ROPE_BY_LENGTH:
            length = min(length, rope.get("original_max_position_embeddings") or length)
    return length


def servable_length(length: int, calls: Sequence[AttentionCall]) -> int:
    """So many positions can be served: attention in chunks is ordinary up to the first chunk."""
    return min([length, *(call.sight.chunk for call in calls if call.sight.chunk is not None)])


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Those of the model, or those of each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [rope, *(part for part in rope.values() if isinstance(part, dict))]


def _kept_by_cache(model: PreTrainedModel) -> dict[int, int]:
    """How many tokens transformers' cache keeps of the layers of which it does not keep all."""
    layers = enumerate(DynamicCache(config=model.config).layers)
    windows = {number: getattr(layer, "sliding_window", None) for number, layer in layers}
    return {number: window for number, window in windows.items() if isinstance(window, int)}
