"""What a model asks of attention, seen by running it once with a function that only looks on.

Configurations say it too, but each family in its own words, and some say what they do not do.
What counts is what reaches the attention function, and the mask that transformers makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from paged_engine.errors import UnsupportedModelError
from paged_engine.models.attention_registry import attention_configs, attention_implementation

LOOK_NAME = "paged_engine_look"

LENGTH = 5  # tokens to look on at: nothing that is read here depends on it

# What `Attend` carries, or what changes nothing in one causal pass without a cache.
_KNOWN = frozenset(
    {
        "scaling",
        "sliding_window",
        "softcap",
        "s_aux",
        "is_causal",
        "cache_position",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)

# Parts of an attention module that keep more of a sequence than keys and values, or choose among
# them; some do so only in sequences longer than those that are tried here.
_OTHER_STATE = frozenset({"indexer", "compressor"})


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys a mask lets a query see: all before it, the last `window`, or its chunk.

    Attributes:
        window: A query sees so many keys, itself included.  None: no such limit.
        chunk: A query sees the keys since the last multiple of this.  None: no such limit.
        is_known: False if it is neither of these, and so cannot be paged.
    """

    def __str__(self) -> str:
        if not self.is_known:
            return "another mask"
        if self.chunk is not None:
            return f"chunks of {self.chunk}"
        return "all before it" if self.window is None else f"a window of {self.window}"

    window: int | None = None
    chunk: int | None = None
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of the attention function.

    Attributes:
        layer: The `layer_idx` of its module.
        num_heads, num_kv_heads: Heads of the query, and of keys and values.
        head_dim, value_dim: Numbers a head of query and key, and of value.
        sight: What its mask lets it see.
        unknown: Names of what it does that this engine knows nothing of.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    sight: Sight
    unknown: tuple[str, ...]


@dataclass(slots=True)
class _Look:
    """One look: what was called, and what each mask that was made lets a query see."""

    last_position: int
    calls: list[AttentionCall] = field(default_factory=list)
    masks: list[tuple[torch.Tensor, Sight]] = field(default_factory=list)

    def sight(self, mask: torch.Tensor | None, window: int | None) -> Sight:
        """What `mask` lets a query see; without a mask, the window that attention is told."""
        if mask is None:
            return Sight(window=window)
        for made, sight in self.masks:
            if made.data_ptr() == mask.data_ptr() and made.shape[-2:] == mask.shape[-2:]:
                return sight
        return Sight(is_known=False)  # the model changed it, or made one of its own


_current: ContextVar[_Look | None] = ContextVar("paged_engine_look", default=None)


@torch.inference_mode()
def observe(model: PreTrainedModel, max_model_len: int) -> list[AttentionCall]:
    """The calls of the attention function in one forward pass, in order.

    Args:
        model: In evaluation mode.
        max_model_len: Masks are asked about positions up to this.

    Raises:
        UnsupportedModelError: The model cannot be run so.
    """
    look = _Look(last_position=max_model_len - 1)
    length = min(LENGTH, max_model_len)
    ids = (
        torch.arange(length, device=model.device)[None] % model.config.get_text_config().vocab_size
    )
    try:
        with _looking(look), attention_implementation(attention_configs(model), LOOK_NAME):
            model(
                input_ids=ids,
                position_ids=torch.arange(length, device=model.device)[None],
                use_cache=False,
            )
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run with an attention function of ours: "
            f"{type(error).__name__}: {error}"
        ) from error
    return look.calls


@contextmanager
def _looking(look: _Look) -> Iterator[None]:
    token = _current.set(look)
    try:
        yield
    finally:
        _current.reset(token)


def _look_on(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """In the place of attention: notes the call and computes nothing."""
    look = _current.get()
    assert look is not None
    unknown = [name for name, value in options.items() if name not in _KNOWN and value is not None]
    unknown += [name for name, part in module.named_children() if name in _OTHER_STATE]
    if key.shape[2] != query.shape[2]:
        unknown.append("keys that are of no token")
    sight = look.sight(attention_mask, options.get("sliding_window"))
    layer: Any = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModelError(f"{type(module).__name__} does not say which layer it is")
    look.calls.append(
        AttentionCall(
            layer, query.shape[1], key.shape[1], key.shape[3], value.shape[3], sight, tuple(unknown)
        )
    )
    batch_size, num_heads, length, _ = query.shape
    return query.new_zeros(batch_size, length, num_heads, value.shape[3]), None


def _look_at_mask(*, mask_function: Callable[..., Any], **options: Any) -> torch.Tensor:
    """In the place of a mask: an ordinary one, and a note of what it lets a query see."""
    look = _current.get()
    assert look is not None
    # a mask that is left out because a backend can do without could not be told from no mask
    options |= {name: False for name in options if name.startswith("allow_is_")}
    mask: torch.Tensor = sdpa_mask(mask_function=mask_function, **options)
    try:
        sight = sight_of(mask_function, look.last_position, mask.device)
    except IndexError:  # it looks at the tokens themselves, of which there are only a few
        sight = Sight(is_known=False)
    look.masks.append((mask, sight))
    return mask


def sight_of(mask_function: Callable[..., Any], last: int, device: torch.device) -> Sight:
    """What a mask function of transformers lets the positions up to `last` see."""
    zero = torch.zeros((), dtype=torch.long, device=device)
    positions = torch.arange(last + 1, device=device)

    def seen(query: Any, key: Any) -> torch.Tensor:
        mask: torch.Tensor = torch.as_tensor(mask_function(zero, zero, query, key), device=device)
        return mask.expand(last + 1)

    reach = int(seen(positions, zero).sum())  # how many positions see the first key
    if reach == last + 1:
        candidate = Sight()
        right = positions <= last
    else:
        at_reach = int(seen(zero + reach, positions).sum())
        candidate = Sight(window=reach) if at_reach == reach else Sight(chunk=reach)
        right = positions > last - reach
        if candidate.chunk is not None:
            right = positions >= last // reach * reach
    looks_back_only = not bool(seen(zero, positions)[1:].any())
    if looks_back_only and torch.equal(seen(zero + last, positions), right):
        return candidate
    return Sight(is_known=False)


AttentionInterface.register(LOOK_NAME, _look_on)
AttentionMaskInterface.register(LOOK_NAME, _look_at_mask)
