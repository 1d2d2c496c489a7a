"""The engine's limits: checked as a whole, and what follows from them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError

COUNTS = [
    *["block_size", "num_blocks", "kv_cache_memory", "max_num_seqs", "max_num_batched_tokens"],
    *["max_model_len", "max_events"],
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True])
def test_a_count_is_a_whole_number_of_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfigError, match=f"^{name} is .*at least 1"):
        EngineConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("policy", "lifo"), ("policy", None), ("seed", 1.5)])
def test_other_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfigError, match=f"^{name} is "):
        EngineConfig(**{name: value})


def test_the_size_of_the_pool_is_given_once() -> None:
    with pytest.raises(InvalidConfigError, match="give one of them"):
        EngineConfig(num_blocks=4, kv_cache_memory=1000)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EngineConfig().block_size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("num_blocks", "max_model_len", "expected"),
    [(None, None, None), (None, 50, 50), (3, None, 13), (3, 50, 13), (3, 12, 12)],
)
def test_the_last_token_needs_no_slot(
    num_blocks: int | None, max_model_len: int | None, expected: int | None
) -> None:
    config = EngineConfig(block_size=4, num_blocks=num_blocks, max_model_len=max_model_len)
    assert config.max_servable_tokens == expected


def test_what_the_model_decides_is_filled_in() -> None:
    config = EngineConfig(kv_cache_memory=1000, max_num_seqs=3)
    resolved = config.resolved(num_blocks=5, max_model_len=7)
    assert (resolved.num_blocks, resolved.max_model_len, resolved.max_num_seqs) == (5, 7, 3)
    assert resolved.kv_cache_memory is None and config.num_blocks is None


def test_an_unknown_option_is_named_with_those_that_are_known() -> None:
    assert EngineConfig.from_options(block_size=4).block_size == 4
    with pytest.raises(InvalidConfigError, match="unknown option blocksize; expected one of"):
        EngineConfig.from_options(blocksize=4)
