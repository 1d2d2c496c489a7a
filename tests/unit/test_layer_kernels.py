"""What C++ does between two products, against the same in torch, over random shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine.errors import InvariantError
from paged_engine.kernels.build import INSTRUCTIONS
from paged_engine.kernels.library import Kernels, RopeCall, load_kernels
from tests.helpers.faulty_kernels import faulty_kernels, kernels_for

DTYPES = [torch.float32, torch.bfloat16]
# Of fp32 by the order of sums; of bf16 one unit in the last place of numbers up to about 8.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.04}
EPSILON = 1e-5


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def far(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of what rounding may do."""
    scale = TOLERANCE[got.dtype] * max(1.0, float(expected.abs().max()) / 8)
    return float((got.float() - expected.float()).abs().max()) / scale


def norm_in_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON))


# ------------------------------------------------------------------ each kernel, and torch


def norm_error(kernels: Kernels, rows: int, width: int, dtype: torch.dtype, seed: int) -> float:
    x = random(rows, width, seed=seed, dtype=dtype)
    delta = random(rows, width, seed=seed + 1, dtype=dtype)
    weight = random(width, seed=seed + 2, dtype=torch.float32)
    worst = 0.0
    for added in (None, delta):
        got_x, out = x.clone(), torch.empty_like(x)
        kernels.add_and_norm(got_x, added, weight, EPSILON, out)
        wanted_x = x if added is None else x + added
        worst = max(worst, far(got_x, wanted_x), far(out, norm_in_torch(wanted_x, weight)))
    return worst


def silu_error(kernels: Kernels, rows: int, width: int, dtype: torch.dtype, seed: int) -> float:
    both = random(rows, 2 * width, seed=seed, dtype=dtype) * 3
    both[0, 0], both[-1, width - 1] = 90.0, -90.0  # e^x overflows beyond 88
    out = both.new_empty(rows, width)
    kernels.silu_and_multiply(both, out)
    gate, up = both.float().split(width, dim=1)
    return far(out, torch.nn.functional.silu(gate) * up)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As transformers writes it: `[T, heads, head_dim]` by `[T, head_dim]`."""
    low, high = x.float().chunk(2, dim=-1)
    return x.float() * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]


def rope_call(
    qkv: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor] | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    num_heads: int,
) -> RopeCall:
    num_blocks, num_kv_heads, block_size, head_dim = caches[0].shape
    cos, sin = (None, None) if rope is None else (t.data_ptr() for t in rope)
    q_norm, k_norm = (None, None) if norms is None else (t.data_ptr() for t in norms)
    return RopeCall(
        qkv=qkv.data_ptr(),
        k_cache=caches[0].data_ptr(),
        v_cache=caches[1].data_ptr(),
        slots=slots.data_ptr(),
        cos=cos,
        sin=sin,
        q_norm=q_norm,
        k_norm=k_norm,
        num_tokens=len(qkv),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        num_slots=num_blocks * block_size,
        num_threads=torch.get_num_threads(),
        epsilon=EPSILON,
    )


def rope_error(
    kernels: Kernels,
    tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    block_size: int = 3,
    has_rope: bool = True,
    has_norms: bool = True,
) -> float:
    num_heads, num_kv_heads = heads
    draw = torch.Generator().manual_seed(seed)
    qkv = random(tokens, (num_heads + 2 * num_kv_heads) * head_dim, seed=seed, dtype=dtype)
    num_blocks = -(-tokens // block_size) + 1
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    caches = (torch.full(shape, 7.0, dtype=dtype), torch.full(shape, 7.0, dtype=dtype))
    slots = torch.randperm(num_blocks * block_size, generator=draw)[:tokens]
    angles = torch.rand(tokens, head_dim // 2, generator=draw).repeat(1, 2) * 6
    rope = (angles.cos(), angles.sin()) if has_rope else None
    norms = (random(head_dim, seed=seed + 3, dtype=torch.float32),) * 2 if has_norms else None
    if norms is not None:
        norms = (norms[0], norms[1].flip(0).contiguous())
    parts = qkv.clone().view(tokens, -1, head_dim).split([num_heads, num_kv_heads, num_kv_heads], 1)
    q, k, v = parts
    if norms is not None:
        q, k = (norm_in_torch(x, w).to(dtype) for x, w in zip((q, k), norms, strict=True))
    if rope is not None:
        q, k = rotated(q, *rope), rotated(k, *rope)
    kernels.rope_and_write(rope_call(qkv, caches, slots, rope, norms, num_heads), dtype)
    worst = far(qkv.view(tokens, -1, head_dim)[:, :num_heads], q)
    wanted = [torch.full(shape, 7.0), torch.full(shape, 7.0)]
    for cache, written in zip(wanted, (k, v), strict=True):
        cache[slots // block_size, :, slots % block_size] = written.float()
    return max(worst, *(far(cache, w) for cache, w in zip(caches, wanted, strict=True)))


rows = st.integers(1, 9)
widths = st.sampled_from([1, 15, 16, 17, 64, 576])
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 1000)


@given(rows, widths, dtypes, seeds)
def test_add_and_norm(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    assert norm_error(load_kernels(), rows, width, dtype, seed) <= 1


@given(rows, widths, dtypes, seeds)
def test_silu_and_multiply(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    assert silu_error(load_kernels(), rows, width, dtype, seed) <= 1


@given(
    rows,
    st.sampled_from([(1, 1), (4, 2), (9, 3)]),
    st.sampled_from([2, 8, 20, 64, 80]),
    dtypes,
    seeds,
    st.sampled_from([1, 3, 16]),
    st.booleans(),
    st.booleans(),
)
def test_rope_and_write(
    tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    block_size: int,
    has_rope: bool,
    has_norms: bool,
) -> None:
    how = (block_size, has_rope, has_norms)
    assert rope_error(load_kernels(), tokens, heads, head_dim, dtype, seed, *how) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", sorted(INSTRUCTIONS))
def test_each_set_of_instructions_with_enough_work_for_two_threads(
    capability: str, dtype: torch.dtype
) -> None:
    kernels = kernels_for(capability)
    assert norm_error(kernels, 70, 576, dtype, 1) <= 1
    assert silu_error(kernels, 40, 1536, dtype, 2) <= 1
    assert rope_error(kernels, 50, (9, 3), 64, dtype, 3) <= 1


@pytest.mark.parametrize("slot", [-1, 12])
def test_a_slot_of_no_block_is_refused_and_nothing_is_written(slot: int) -> None:
    qkv = random(3, 4 * 8, seed=1, dtype=torch.float32)
    caches = (torch.zeros(4, 1, 3, 8), torch.zeros(4, 1, 3, 8))
    slots = torch.tensor([2, slot, 5])
    call = rope_call(qkv, caches, slots, None, None, 2)
    with pytest.raises(InvariantError, match="1 tokens were to be written .* expected 0 to 11"):
        load_kernels().rope_and_write(call, torch.float32)
    assert not caches[0].any() and not caches[1].any()


def test_a_nan_stays_in_its_row() -> None:
    x = torch.randn(3, 40)
    x[1, 7] = float("nan")
    out = torch.empty_like(x)
    load_kernels().add_and_norm(x, None, torch.ones(40), EPSILON, out)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


# ------------------------------------------------------------------ faults

FAULTS = {
    "the mean is a sum": ("sum(squares) / float(width)", "sum(squares)"),
    "nothing keeps the root from zero": ("/ float(width) + epsilon", "/ float(width)"),
    "the weight is left out": ("load(weight + i, width - i) *", ""),
    "x is not added to": ("put(load(x + i, n) + ", "put("),
    "the gate is not opened": ("x * sigmoid(x) *", "sigmoid(x) *"),
    "large numbers overflow": ("exp_of(x < all(0.0f) ? x : -x)", "exp_of(-x)"),
    "up is gate": ("gate + a.width", "gate"),
    "turned the other way": ("- y * load(sin + i, n)", "+ y * load(sin + i, n)"),
    "half is not turned": ("+ x * load(sin + half + i, n)", ""),
    "the angle of another token": ("a.cos + token * d", "a.cos"),
    "keys are not normed": ("head < a.num_heads ? a.q_norm : a.k_norm",
                            "head < a.num_heads ? a.q_norm : nullptr"),
    "queries are normed as keys": ("head < a.num_heads ? a.q_norm", "false ? a.q_norm"),
    "values are keys": ("key + (a.num_kv_heads + head) * d", "key + head * d"),
    "blocks lie token by token": ("(block * a.num_kv_heads + head) * a.block_size + offset",
                                  "(block * a.block_size + offset) * a.num_kv_heads + head"),
    "the last lanes are lost": ("i < width; i += LANES) {\n        Vec part",
                                "i + LANES <= width; i += LANES) {\n        Vec part"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_in_the_source_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = faulty_kernels("layers.cpp", *FAULTS[name], monkeypatch, tmp_path)
    # 21 fills no set of lanes to its end
    small = torch.full((2, 21), 1e-3)
    out = torch.empty_like(small)
    kernels.add_and_norm(small.clone(), None, torch.ones(21), EPSILON, out)
    errors = [
        far(out, norm_in_torch(small, torch.ones(21))),
        norm_error(kernels, 5, 21, torch.float32, 1),
        silu_error(kernels, 5, 21, torch.float32, 2),
        rope_error(kernels, 5, (4, 2), 16, torch.float32, 3),
    ]
    assert not max(errors) <= 100
