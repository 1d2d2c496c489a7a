"""The C++ attention against the reference over random shapes, and what it refuses to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine.attention import CpuAttention, reference_attention
from paged_engine.batch import Batch
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.kernels.build import INSTRUCTIONS
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from tests.helpers.faulty_kernels import faulty_kernels, kernels_for

# Of fp32 by the order of sums; of bf16 one unit in the last place of numbers up to about 8.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.04}

# Decoded tokens, so many that each is one piece of work with all KV heads.
MANY = [(1, total) for total in range(1, 61, 3)]


def make(
    lengths: list[tuple[int, int]],
    *,
    block_size: int = 4,
    heads: tuple[int, int] = (2, 1),
    dims: tuple[int, int] = (8, 8),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[torch.Tensor, PagedKVCache, Batch]:
    """Queries, cache and batch; each length is (tokens computed now, tokens in all)."""
    draw = torch.Generator().manual_seed(seed)
    counts = [-(-total // block_size) for _, total in lengths]
    shape = KVCacheShape(2, heads[1], *dims)
    cache = PagedKVCache(shape, sum(counts) + 2, block_size, dtype=dtype, device="cpu")
    cache.k.copy_(torch.randn(cache.k.shape, generator=draw))
    cache.v.copy_(torch.randn(cache.v.shape, generator=draw))
    ids = torch.randperm(cache.num_blocks, generator=draw).tolist()
    tables = [[ids.pop() for _ in range(count)] for count in counts]
    positions, starts = [], [0]
    for new, total in lengths:
        positions += range(total - new, total)
        starts.append(starts[-1] + new)
    batch = Batch(
        input_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        slot_mapping=torch.zeros(starts[-1], dtype=torch.int64),
        block_tables=torch.tensor([t + t[:1] * (max(counts) - len(t)) for t in tables]),
        context_lens=[total for _, total in lengths],
        query_starts=starts,
        last_indices=torch.tensor(starts[1:]) - 1,
    )
    # as the models hand it over: heads before tokens in memory
    q = torch.randn(heads[0], starts[-1], dims[0], generator=draw).to(dtype).transpose(0, 1)
    return q, cache, batch


def difference(backend: Any, made: Any, **options: Any) -> float:
    q, cache, batch = made
    options = {"scale": 0.3, **options}
    expected = reference_attention(q, q, q, 1, cache, batch, **options)
    got = backend(q, q, q, 1, cache, batch, **options)
    return float((got.float() - expected.float()).abs().max())


@st.composite
def cases(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    num_heads = num_kv_heads * draw(st.sampled_from([1, 2, 3, 7, 71]))
    totals = draw(st.lists(st.integers(1, 90), min_size=1, max_size=12))
    lengths = [(draw(st.one_of(st.just(1), st.integers(1, total))), total) for total in totals]
    made = {
        "lengths": lengths,
        "block_size": draw(st.sampled_from([1, 3, 4, 16, 32])),
        "heads": (num_heads, num_kv_heads),
        "dims": (draw(st.sampled_from([8, 13, 64, 80])), draw(st.sampled_from([5, 16, 64]))),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "seed": draw(st.integers(0, 1000)),
    }
    options = {
        "scale": draw(st.sampled_from([0.1, 0.35])),
        "window": draw(st.sampled_from([None, 1, 3, 17])),
        "soft_cap": draw(st.sampled_from([None, 2.0])),
        "sinks": torch.randn(num_heads) if draw(st.booleans()) else None,
    }
    return made, options


@given(cases())
def test_it_is_the_reference_over_random_shapes(case: Any) -> None:
    made, options = case
    assert difference(CpuAttention(), make(**made), **options) <= TOLERANCE[made["dtype"]]


@pytest.mark.parametrize("capability", sorted(INSTRUCTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_set_of_instructions_gives_the_reference(capability: str, dtype: torch.dtype) -> None:
    backend = CpuAttention(kernels_for(capability))
    lengths = [(1, 50), (33, 40), (7, 7), (1, 1), *MANY]
    made = make(lengths, block_size=16, heads=(9, 3), dims=(64, 64), dtype=dtype)
    assert difference(backend, made, window=20, soft_cap=3.0) <= TOLERANCE[dtype]


@pytest.mark.parametrize("block", [-1, 10_000])
def test_a_table_that_names_no_block_is_refused_and_nothing_is_read(block: int) -> None:
    q, cache, batch = make([(1, 9), (4, 6)])
    batch.block_tables[1, 1] = block
    with pytest.raises(InvariantError, match="a block table names block"):
        CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)


def test_a_table_that_is_too_short_is_refused() -> None:
    q, cache, batch = make([(1, 9), (4, 6)])
    batch.context_lens[0] = 13
    with pytest.raises(InvariantError, match="13 tokens in tables of 3 blocks of 4"):
        CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)


def test_numbers_that_it_does_not_know_are_refused() -> None:
    q, cache, batch = make([(1, 9)], dtype=torch.float16)
    with pytest.raises(InvalidConfigError, match="expected both fp32 or both bf16"):
        CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)
    q, cache, batch = make([(1, 9)])
    with pytest.raises(InvalidConfigError, match="a cache of torch.float32"):
        CpuAttention()(q.bfloat16(), q, q, 0, cache, batch, scale=1.0)


def test_a_nan_stays_with_the_row_that_it_belongs_to() -> None:
    q, cache, batch = make([(3, 9), (1, 6)], heads=(4, 2))
    q[1, 2] = float("nan")
    out = CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)
    assert out[1, 2].isnan().all()
    out[1, 2] = 0
    assert not out.isnan().any()


def test_a_nan_of_a_key_is_seen_by_all_who_see_the_key_and_by_nobody_else() -> None:
    q, cache, batch = make([(6, 6)], heads=(2, 1))
    cache.k[0, batch.block_tables[0, 1], 0, 0] = float("nan")  # position 4
    out = CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)
    assert not out[:4].isnan().any() and out[4:].isnan().all()


def test_layers_with_other_numbers_of_query_heads_get_tiles_of_their_own() -> None:
    """Those of the first layer would be too large for the scratch of the second."""
    few, cache, batch = make([(40, 60)], heads=(1, 1))
    many, _, _ = make([(40, 60)], heads=(8, 1))
    for q in (few, many, few):
        assert difference(CpuAttention(), (q, cache, batch)) <= TOLERANCE[torch.float32]


def test_one_thread_and_two_give_the_same_bits() -> None:
    q, cache, batch = make([(1, 50), (33, 40), (7, 7)], heads=(6, 2))
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(CpuAttention()(q, q, q, 0, cache, batch, scale=1.0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


# What is replaced in the source by what.  The comparison above must see each.
FAULTS = {
    "the next token is seen": ("at + 1 - key, 0", "at + 2 - key, 0"),
    "the token itself is not seen": ("at + 1 - key, 0", "at - key, 0"),
    "the window is one too wide": ("at - a.window + 1 - key", "at - a.window - key"),
    "the window is left out": ("const int64_t from = a.window > 0", "const int64_t from = false"),
    "the sum is not rescaled": ("s.total[row] *= rescale;", ""),
    "the values are not rescaled": ("gathered[i] *= rescale", "gathered[i] *= 1"),
    "the sink is left out": ("+ std::exp(sink - top)", ""),
    "the values forget the sink": ("(rescale / total)", "(1 / total)"),
    "the soft cap is left out": ("a.soft_cap > 0", "a.soft_cap > 1e9f"),
    "all query heads read the first KV head": (
        "(a.k_cache) + head * a.block_size * d",
        "(a.k_cache)",
    ),
    "the table is read by number": ("table[entry]", "table[0]"),
    "the last of several keys is lost": (
        "clamp<int64_t>(end - first,",
        "clamp<int64_t>(end - first - (end - first > 1),",
    ),
    "the scale is lost": ("* a.scale", ""),
    "with all KV heads, each is the first": (
        "what(scratch.from(a, head * padded_rows(rows)), first_head + head)",
        "what(scratch.from(a, head * padded_rows(rows)), first_head)",
    ),
    "with all KV heads, they share their rows": ("head * padded_rows(rows)", "0 * head"),
    "an odd key is the one before": ("std::min(key + 1, chunk", "std::min(key, chunk"),
    "sinks of the first heads": ("a.sinks + head * group", "a.sinks"),
    "the last of few rows is lost": (
        "case 3: return what(std::integral_constant<int, 3>",
        "case 3: return what(std::integral_constant<int, 2>",
    ),
    "a token too far": ("row / group * a.q_token_stride", "row / rows * a.q_token_stride"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_in_the_source_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = faulty_kernels("paged_attention.cpp", *FAULTS[name], monkeypatch, tmp_path)
    backend = CpuAttention(kernels)
    sinks = torch.linspace(-1, 2, 6)
    differences = []
    for lengths in ([(1, 50), (33, 40), (7, 7), (1, 1)], MANY):
        made = make(lengths, block_size=20, heads=(6, 2), dims=(16, 16))
        differences += [
            difference(backend, made, window=9, soft_cap=2.0, sinks=sinks),
            difference(backend, made, window=9),
            difference(backend, made),
        ]
    assert not all(d <= 100 * TOLERANCE[torch.float32] for d in differences)
