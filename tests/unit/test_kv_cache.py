"""Where keys and values lie, and how many blocks a budget of memory pays for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_engine import kv_cache
from paged_engine.errors import InvalidConfigError
from paged_engine.kv_cache import KVCacheShape, PagedKVCache, free_memory, num_blocks_for

SHAPE = KVCacheShape(num_layers=3, num_kv_heads=2, head_dim=5)
CPU = torch.device("cpu")


def make(num_blocks: int = 6, block_size: int = 4, dtype: torch.dtype = torch.float32) -> Any:
    return PagedKVCache(SHAPE, num_blocks, block_size, dtype=dtype, device="cpu")


def numbered(num_tokens: int, offset: float = 0.0) -> torch.Tensor:
    """`[T, 2, 5]`, every number another."""
    return torch.arange(num_tokens * 10, dtype=torch.float32).view(num_tokens, 2, 5) + offset


def test_the_tensors_are_layers_by_blocks_by_heads_by_slots_by_head_dim() -> None:
    cache = make()
    assert cache.k.shape == cache.v.shape == (3, 6, 2, 4, 5)
    assert cache.k.dtype is cache.v.dtype is torch.float32
    assert cache.k.is_contiguous() and cache.v.is_contiguous()
    assert (cache.num_blocks, cache.block_size) == (6, 4)


def test_a_new_cache_holds_zeros() -> None:
    cache = make()
    assert not cache.k.any() and not cache.v.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_its_size_in_bytes_is_that_of_all_its_slots(dtype: torch.dtype) -> None:
    cache = make(dtype=dtype)
    assert cache.num_bytes == 2 * 3 * 6 * 2 * 4 * 5 * dtype.itemsize
    assert cache.num_bytes == SHAPE.bytes_per_token(dtype) * 6 * 4


def test_slot_s_is_place_s_modulo_block_size_of_block_s_over_block_size() -> None:
    cache = make()
    slots = [0, 3, 4, 13, 23]
    k, v = numbered(5, 1), numbered(5, 1000)
    cache.write(1, k, v, torch.tensor(slots))
    for t, slot in enumerate(slots):
        for head in range(2):
            assert torch.equal(cache.k[1, slot // 4, head, slot % 4], k[t, head])
            assert torch.equal(cache.v[1, slot // 4, head, slot % 4], v[t, head])
    assert int((cache.k != 0).sum()) == int((cache.v != 0).sum()) == 50
    assert not cache.k[[0, 2]].any()


def test_writing_again_replaces() -> None:
    cache = make()
    slots = torch.tensor([5, 6])
    cache.write(0, numbered(2), numbered(2), slots)
    cache.write(0, numbered(2, 70), numbered(2, 90), slots)
    k, v = cache.gather(0, torch.tensor([1]), 3)
    assert torch.equal(k[:, 1:].transpose(0, 1), numbered(2, 70))
    assert torch.equal(v[:, 1:].transpose(0, 1), numbered(2, 90))


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 11, 12])
def test_gathering_gives_what_was_written_in_the_order_of_the_table(num_tokens: int) -> None:
    cache = make()
    table = [4, 0, 5]
    slots = [table[p // 4] * 4 + p % 4 for p in range(12)]
    cache.write(2, numbered(12), numbered(12, 500), torch.tensor(slots))
    k, v = cache.gather(2, torch.tensor(table), num_tokens)
    assert k.shape == v.shape == (2, num_tokens, 5)
    assert torch.equal(k, numbered(12)[:num_tokens].transpose(0, 1))
    assert torch.equal(v, numbered(12, 500)[:num_tokens].transpose(0, 1))


def test_the_end_of_a_longer_table_is_not_looked_at() -> None:
    cache = make()
    cache.write(0, numbered(4), numbered(4), torch.arange(8, 12))
    short = cache.gather(0, torch.tensor([2]), 4)
    padded = cache.gather(0, torch.tensor([2, 999]), 4)
    assert all(torch.equal(a, b) for a, b in zip(short, padded, strict=True))


def test_what_was_gathered_is_a_copy() -> None:
    cache = make()
    cache.write(0, numbered(4), numbered(4), torch.arange(4))
    k, _ = cache.gather(0, torch.tensor([0]), 4)
    k.fill_(-1)
    assert torch.equal(cache.gather(0, torch.tensor([0]), 4)[0], numbered(4).transpose(0, 1))


def random_cache() -> Any:
    cache = make()
    cache.k.copy_(torch.rand(cache.k.shape))
    cache.v.copy_(torch.rand(cache.v.shape))
    return cache


def test_a_copied_block_is_alike_in_all_layers_and_the_others_are_as_before() -> None:
    cache = random_cache()
    k, v = cache.k.clone(), cache.v.clone()
    cache.copy_blocks([(0, 3), (0, 4), (5, 1)])
    for source, target in ((0, 3), (0, 4), (5, 1)):
        assert torch.equal(cache.k[:, target], k[:, source])
        assert torch.equal(cache.v[:, target], v[:, source])
    for untouched in (0, 2, 5):
        assert torch.equal(cache.k[:, untouched], k[:, untouched])
        assert torch.equal(cache.v[:, untouched], v[:, untouched])


def test_copies_of_one_call_all_read_what_was_there_before_it() -> None:
    cache = random_cache()
    k = cache.k.clone()
    cache.copy_blocks([(0, 1), (1, 2)])
    assert torch.equal(cache.k[:, 1], k[:, 0]) and torch.equal(cache.k[:, 2], k[:, 1])


def test_zeroed_blocks_are_zero_even_where_they_were_nan() -> None:
    cache = random_cache()
    cache.k[:, 2] = cache.v[:, 4] = float("nan")
    k = cache.k.clone()
    cache.zero_blocks([2, 4])
    assert not cache.k[:, [2, 4]].any() and not cache.v[:, [2, 4]].any()
    assert torch.equal(cache.k[:, [0, 1, 3, 5]], k[:, [0, 1, 3, 5]])


def test_no_blocks_to_copy_or_zero_is_nothing_to_do() -> None:
    cache = random_cache()
    k = cache.k.clone()
    cache.copy_blocks([])
    cache.zero_blocks([])
    assert torch.equal(cache.k, k)


# ------------------------------------------------------------------ budgets

PER_TOKEN = 2 * 3 * 2 * 5 * 4  # K and V, layers, heads, head_dim, bytes of a float


def blocks(memory: int | None, most_tokens: int = 10**9, block_size: int = 4, **o: Any) -> int:
    options = {"dtype": torch.float32, "device": CPU, **o}
    return num_blocks_for(SHAPE, block_size, memory=memory, most_tokens=most_tokens, **options)


def test_a_token_takes_keys_and_values_of_all_layers_and_heads() -> None:
    assert SHAPE.bytes_per_token(torch.float32) == PER_TOKEN
    assert SHAPE.bytes_per_token(torch.bfloat16) == PER_TOKEN // 2


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_budget_pays_for_whole_blocks(number: int) -> None:
    exact = number * 4 * PER_TOKEN
    assert blocks(exact) == blocks(exact + 4 * PER_TOKEN - 1) == number
    assert blocks(exact, dtype=torch.bfloat16) == 2 * number
    cache = make(num_blocks=number)
    assert cache.num_bytes == exact


def test_a_budget_below_one_block_is_refused_with_what_one_takes() -> None:
    with pytest.raises(InvalidConfigError, match=rf"{4 * PER_TOKEN} bytes, more than kv_cache_m"):
        blocks(4 * PER_TOKEN - 1)


def test_a_given_budget_is_taken_whole_however_little_could_be_used() -> None:
    assert blocks(100 * 4 * PER_TOKEN, most_tokens=8) == 100


def test_without_a_budget_it_is_no_more_than_all_requests_could_fill() -> None:
    assert blocks(None, most_tokens=8) == 2
    assert blocks(None, most_tokens=9) == 3


def test_without_a_budget_it_is_a_share_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_cache, "_free_host_memory", lambda: 1_000_000)
    assert free_memory(CPU) == int(1_000_000 * kv_cache.CPU_SHARE)
    assert blocks(None) == int(1_000_000 * kv_cache.CPU_SHARE) // (4 * PER_TOKEN)


def test_too_little_free_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_free_host_memory", lambda: 100)
    with pytest.raises(InvalidConfigError, match="more than the free memory"):
        blocks(None)


@pytest.mark.parametrize("missing", ["meminfo", "meminfo and sysconf"])
def test_free_memory_is_guessed_where_the_system_does_not_say(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError

    monkeypatch.setattr(kv_cache, "open", refuse, raising=False)
    if "sysconf" in missing:
        monkeypatch.setattr(kv_cache.os, "sysconf", refuse, raising=False)
    assert free_memory(CPU) > 1 << 20
