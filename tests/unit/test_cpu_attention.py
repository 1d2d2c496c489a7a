"""The C++ attention against the reference over random shapes, and what it refuses to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine.attention import CpuAttention, reference_attention
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.kernels.build import INSTRUCTIONS
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from tests.helpers.attention_calls import make
from tests.helpers.faulty_kernels import faulty_kernels, kernels_for

# Of fp32 by the order of sums; in bf16 the result is rounded, of numbers up to about 8, and before
# that, where there is a unit for small matrices, the weights.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.02}

# Decoded tokens, so many that each is one piece of work with all KV heads.
MANY = [(1, total) for total in range(1, 61, 3)]
MANY_LONG = [(1, total) for total in range(1, 310, 15)]


def difference(backend: Any, made: Any, **options: Any) -> float:
    """From the reference over the same numbers, computed in fp32."""
    q, cache, batch = made
    options = {"scale": 0.3, **options}
    got = backend(q, q, q, 1, cache, batch, **options)
    exact = PagedKVCache(
        KVCacheShape(*(cache.k.shape[i] for i in (0, 2, 4)), cache.v.shape[4]),
        cache.num_blocks,
        cache.block_size,
        dtype=torch.float32,
        device="cpu",
    )
    exact.k.copy_(cache.k)
    exact.v.copy_(cache.v)
    expected = reference_attention(q.float(), q.float(), q.float(), 1, exact, batch, **options)
    return float((got.float() - expected).abs().max())


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


@st.composite
def cases_of_the_unit(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a unit for small matrices computes, where there is one: chunks of 128 keys."""
    made, options = draw(cases())
    totals = draw(st.lists(st.integers(1, 300), min_size=1, max_size=20))
    num_kv_heads = draw(st.sampled_from([1, 2, 3, 11]))
    num_heads = num_kv_heads * draw(st.sampled_from([1, 3, 5, 71]))
    made |= {
        "lengths": [(draw(st.one_of(st.just(1), st.integers(1, n))), n) for n in totals],
        "block_size": draw(st.sampled_from([16, 32, 48])),
        "heads": (num_heads, num_kv_heads),
        "dims": (draw(st.sampled_from([32, 64, 96])), draw(st.sampled_from([32, 64]))),
        "dtype": torch.bfloat16,
    }
    options["window"] = draw(st.sampled_from([None, 1, 17, 140]))
    options["sinks"] = None if options["sinks"] is None else torch.randn(num_heads)
    return made, options


@given(cases_of_the_unit())
def test_it_is_the_reference_over_random_shapes_that_a_unit_takes(case: Any) -> None:
    made, options = case
    assert difference(CpuAttention(), make(**made), **options) <= TOLERANCE[torch.bfloat16]


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


# Sizes and numbers that a unit for small matrices takes, and such that it does not.
OF_THE_UNIT: dict[str, Any] = {"block_size": 16, "dims": (64, 32), "dtype": torch.bfloat16}
ON_BOTH_WAYS = pytest.mark.parametrize("sizes", [{}, OF_THE_UNIT], ids=["vectors", "unit"])


@ON_BOTH_WAYS
def test_a_nan_stays_with_the_row_that_it_belongs_to(sizes: dict[str, Any]) -> None:
    q, cache, batch = make([(3, 9), (1, 6)], heads=(4, 2), **sizes)
    q[1, 2] = float("nan")
    out = CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)
    assert out[1, 2].isnan().all()
    out[1, 2] = 0
    assert not out.isnan().any()


@ON_BOTH_WAYS
def test_a_nan_of_a_key_is_seen_by_all_who_see_the_key_and_by_nobody_else(
    sizes: dict[str, Any],
) -> None:
    q, cache, batch = make([(6, 6)], heads=(2, 1), **sizes)
    cache.k[0, batch.block_tables[0, 4 // cache.block_size], 0, 4 % cache.block_size] = torch.nan
    out = CpuAttention()(q, q, q, 0, cache, batch, scale=1.0)
    assert not out[:4].isnan().any() and out[4:].isnan().all()


@ON_BOTH_WAYS
def test_what_lies_behind_the_last_key_is_not_seen(sizes: dict[str, Any]) -> None:
    """Memory that nobody has written yet may hold anything."""
    made = make([(1, 19), (5, 7), *MANY], heads=(6, 2), **sizes)
    _, cache, batch = made
    for table, length in zip(batch.block_tables, batch.context_lens, strict=True):
        last = table[(length - 1) // cache.block_size]
        cache.k[:, last, :, (length - 1) % cache.block_size + 1 :] = torch.nan
        cache.v[:, last, :, (length - 1) % cache.block_size + 1 :] = torch.nan
    assert difference(CpuAttention(), made) <= TOLERANCE[cache.k.dtype]


def test_layers_with_other_numbers_of_query_heads_get_tiles_of_their_own() -> None:
    """Those of the first layer would be too large for the scratch of the second."""
    few, cache, batch = make([(40, 60)], heads=(1, 1))
    many, _, _ = make([(40, 60)], heads=(8, 1))
    for q in (few, many, few):
        assert difference(CpuAttention(), (q, cache, batch)) <= TOLERANCE[torch.float32]


@ON_BOTH_WAYS
def test_one_thread_and_two_give_the_same_bits(sizes: dict[str, Any]) -> None:
    q, cache, batch = make([(1, 50), (33, 40), (7, 7)], heads=(6, 2), **sizes)
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


UNIT = {
    "the next token is seen": ("key <= at", "key <= at + 1"),
    "the token itself is not seen": ("key <= at", "key < at"),
    "the window is one too wide": ("at - key < int(a.window)", "at - key <= int(a.window)"),
    "the window is left out": ("a.window > 0 ? before &", "a.window < 0 ? before &"),
    "all are thought to see all": ("if (!all_see_all)", "if (false)"),
    "the sum is not rescaled": ("load(s.total + row) * rescale", "load(s.total + row)"),
    "the values are not rescaled": ("gathered[c] *= rescale[i]", "gathered[c] *= 1"),
    "the maximum of the first head's part": ("/ rows_of_head + set;", "/ rows + set;"),
    "the sink is left out": ("+ std::exp(sink - top)", ""),
    "the values forget the sink": ("(rescale / total)", "(1 / total)"),
    "sinks of the first heads": ("a.sinks[query_head]", "a.sinks[query_head % group]"),
    "the soft cap is left out": ("a.soft_cap > 0", "a.soft_cap > 1e9f"),
    "the scale is lost": ("* a.scale", ""),
    "all query heads read the first keys": ("(a.k_cache) + head * a.block_size * d", "(a.k_cache)"),
    "and the first values": ("(a.v_cache) + head * a.block_size * e", "(a.v_cache)"),
    "the table is read by number": ("table[there / a.block_size]", "table[0]"),
    "the first heads again": ("a.num_kv_heads + first_head) *", "a.num_kv_heads) *"),
    "the second keys are the first": ("now[2 * step + 1]", "now[2 * step]"),
    "each step is the first": ("keys + now[2 * step]", "keys + now[0]"),
    "each step's values are the first's": ("now[first / UNIT_ROWS]", "now[0]"),
    "what is behind the last value is read": ("first + row + 1 < count", "true"),
    "the last value is lost": ("first + row < count", "first + row + 1 < count"),
    "the second halves are the first": ("dealt_from(UNIT_COLUMNS / 2", "dealt_from(0"),
    "even weights for odd": ("odd = rounded(weights[2 * i + 1])", "odd = rounded(weights[2 * i])"),
    "weights stay columns": ("transpose(pairs);", ""),
    "each step's weights are the first's": ("weights + step * KEYS, to", "weights, to"),
    "a chunk's later steps are lost": ("add_values(head, steps)", "add_values(head, 1)"),
    "lower rows have upper weights": ("upper_weights + UNIT_ROWS * KEYS / 2", "upper_weights"),
    "there are no lower rows": ("{rows - set * ROWS > UNIT_ROWS, true}", "{false, true}"),
    "there are no right rows": ("{true, rows - set * ROWS > UNIT_ROWS}", "{true, false}"),
    "what was scored before stays": ("clear_sums(half);", ""),
    "a token too far": ("(first + token) * a.q_", "(first + tokens - 1) * a.q_"),
    "a token's position is the piece's": ("int32_t(position + token)", "int32_t(position)"),
    "queries of the part before": ("queries_of(head + row / ROWS)", "queries_of(head)"),
    "no value of the sums so far": ("load_sums(gathered, e, half);", "clear_sums(half);"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", UNIT)
def test_each_fault_in_the_source_for_the_unit_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = ("unit_attention.cpp", *UNIT[name])
    backend = CpuAttention(faulty_kernels(*fault, monkeypatch, tmp_path, "AMX"))
    sinks = torch.linspace(-1, 2, 6)
    differences = []
    for lengths in ([(1, 250), (33, 140), (47, 47), (1, 1)], MANY_LONG):
        made = make(lengths, heads=(6, 2), **OF_THE_UNIT)
        cache, table = made[1], made[2].block_tables
        cache.v[:, table[-1, (lengths[-1][1] - 1) // 16], :, lengths[-1][1] % 16 :] = torch.nan
        differences += [
            difference(backend, made, window=9, soft_cap=2.0, sinks=sinks),
            difference(backend, made, window=9),
            difference(backend, made),
        ]
    assert not all(d <= 2 * TOLERANCE[torch.bfloat16] for d in differences)
