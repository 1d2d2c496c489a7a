"""What is seen of a model's attention: its calls, and what its masks let a query see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from paged_engine.errors import UnsupportedModelError
from paged_engine.models import tiny
from paged_engine.models.observation import Sight, observe, sight_of

LAST = 99


def every_other(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return (query - key) % 2 == 0


@pytest.mark.parametrize(
    ("mask_function", "sight"),
    [
        (causal_mask_function, Sight()),
        (sliding_window_causal_mask_function(1), Sight(window=1)),
        (sliding_window_causal_mask_function(40), Sight(window=40)),
        (sliding_window_causal_mask_function(99), Sight(window=99)),
        (sliding_window_causal_mask_function(100), Sight()),
        (chunked_causal_mask_function(30, torch.zeros(1, dtype=torch.long)), Sight(chunk=30)),
        (chunked_causal_mask_function(50, torch.zeros(1, dtype=torch.long)), Sight(chunk=50)),
        (bidirectional_mask_function, Sight(is_known=False)),
        (and_masks(causal_mask_function, every_other), Sight(is_known=False)),
    ],
)
def test_what_a_mask_lets_a_query_see(mask_function: Callable[..., Any], sight: Sight) -> None:
    assert sight_of(mask_function, LAST, torch.device("cpu")) == sight


def test_what_a_sight_is_called() -> None:
    sights = [Sight(), Sight(window=3), Sight(chunk=4), Sight(is_known=False)]
    named = ["all before it", "a window of 3", "chunks of 4", "another mask"]
    assert [str(sight) for sight in sights] == named


@pytest.mark.parametrize("max_model_len", [2, 512])
def test_each_layer_is_seen_with_its_sizes_and_its_mask(max_model_len: int) -> None:
    model = tiny("gemma2", max_position_embeddings=max_model_len)
    own = model.config._attn_implementation
    first, second = observe(model, max_model_len)
    assert (first.layer, second.layer) == (0, 1)
    assert (first.num_heads, first.num_kv_heads, first.head_dim, first.value_dim) == (4, 2, 32, 32)
    window = 12 if max_model_len > 12 else None
    assert (first.sight, second.sight) == (Sight(window=window), Sight())
    assert first.unknown == second.unknown == ()
    assert model.config._attn_implementation == own


def test_an_argument_that_no_backend_knows_is_seen() -> None:
    model = tiny()
    attention = model.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **options: forward(*args, position_bias=1, **options)
    assert [call.unknown for call in observe(model, 512)] == [(), ("position_bias",)]


@pytest.mark.parametrize("name", ["indexer", "compressor"])
def test_a_part_that_keeps_more_than_keys_and_values_is_seen(name: str) -> None:
    model = tiny()
    model.model.layers[0].self_attn.add_module(name, torch.nn.Identity())
    assert [call.unknown for call in observe(model, 512)] == [(name,), ()]


def test_a_mask_that_the_model_made_itself_is_not_known() -> None:
    model = tiny()
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def with_own_mask(*args: Any, attention_mask: torch.Tensor, **options: Any) -> Any:
        return forward(*args, attention_mask=attention_mask.clone(), **options)

    attention.forward = with_own_mask
    assert [call.sight.is_known for call in observe(model, 512)] == [False, True]


def test_a_model_that_fails_is_refused_and_left_as_it_was() -> None:
    model = tiny()
    model.model.layers[1].self_attn.q_proj = None
    with pytest.raises(UnsupportedModelError, match="cannot be run with an attention function of"):
        observe(model, 512)
    assert model.config._attn_implementation == "sdpa"
