"""Each attention backend against attention over dense tensors, written by torch and by hand."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from paged_engine.attention import CpuAttention, SdpaAttention, get_backend, reference_attention
from paged_engine.batch import Batch, pack
from paged_engine.errors import InvalidConfigError
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.request import Request

BACKENDS = {
    "reference": lambda: reference_attention,
    "sdpa": SdpaAttention,
    "cpu": CpuAttention,
}
HEAD_DIM = 8
SCALE = 0.3

# (already computed, computed now) of each sequence
BATCHES: dict[str, list[tuple[int, int]]] = {
    "one prompt": [(0, 9)],
    "one token at the very start": [(0, 1)],
    "prompts": [(0, 5), (0, 1), (0, 13)],
    "decode": [(4, 1), (11, 1), (1, 1), (30, 1), (7, 1), (8, 1), (2, 1), (19, 1), (3, 1), (16, 1)],
    "a chunk of a prompt": [(6, 7)],
    "a chunk that begins and ends with a block": [(4, 8)],
    "prefill and decode": [(9, 1), (0, 6), (3, 4), (21, 1), (0, 1)],
}


class Case:
    """A batch with its cache, and the same keys and values as dense tensors.

    Every slot that is not a token of some sequence holds a large number: what reads it is seen.
    """

    def __init__(
        self,
        sequences: list[tuple[int, int]],
        *,
        block_size: int = 4,
        heads: tuple[int, int] = (4, 2),
        dtype: torch.dtype = torch.float32,
        layer: int = 1,
    ) -> None:
        draw = torch.Generator().manual_seed(5)
        num_heads, num_kv_heads = heads
        counts = [-(-(past + new) // block_size) for past, new in sequences]
        ids = list(range(sum(counts) + 3))
        random.Random(9).shuffle(ids)
        self.cache = PagedKVCache(
            KVCacheShape(3, num_kv_heads, HEAD_DIM), len(ids), block_size, dtype=dtype, device="cpu"
        )
        self.cache.k.fill_(1e4)
        self.cache.v.fill_(-1e4)
        self.layer = layer
        self.keys, self.values, scheduled = [], [], {}
        for s, ((past, new), count) in enumerate(zip(sequences, counts, strict=True)):
            k, v = torch.randn(2, past + new, num_kv_heads, HEAD_DIM, generator=draw).to(dtype)
            self.keys.append(k)
            self.values.append(v)
            request = Request(str(s), [1] * (past + new))
            request.block_table = [ids.pop() for _ in range(count)]
            whole = pack({request: past + new}, block_size, "cpu")
            self.cache.write(layer, k, v, whole.slot_mapping)
            request.num_computed_tokens = past
            scheduled[request] = new
        self.batch: Batch = pack(scheduled, block_size, "cpu")
        shape = (self.batch.num_tokens, num_heads, HEAD_DIM)
        self.q = torch.randn(shape, generator=draw).to(dtype)
        starts = [past for past, _ in sequences]
        self.k = torch.cat([k[past:] for k, past in zip(self.keys, starts, strict=True)])
        self.v = torch.cat([v[past:] for v, past in zip(self.values, starts, strict=True)])

    def attend(self, backend: Any, **options: Any) -> torch.Tensor:
        options = {"scale": SCALE, **options}
        return backend(self.q, self.k, self.v, self.layer, self.cache, self.batch, **options)

    def by_hand(
        self,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One query, one head, one key at a time, in Python's own numbers."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        num_heads, num_kv_heads = self.q.shape[1], self.k.shape[1]
        for s, context in enumerate(self.batch.context_lens):
            first, last = self.batch.query_starts[s], self.batch.query_starts[s + 1]
            for t, head in itertools.product(range(first, last), range(num_heads)):
                position = context - last + t
                kv_head = head * num_kv_heads // num_heads
                oldest = 0 if window is None else max(0, position - window + 1)
                keys = self.keys[s][oldest : position + 1, kv_head].double()
                scores = [float(self.q[t, head].double() @ key) * SCALE for key in keys]
                if soft_cap is not None:
                    scores = [soft_cap * math.tanh(score / soft_cap) for score in scores]
                total = sum(math.exp(score) for score in scores)
                if sinks is not None:
                    total += math.exp(float(sinks[head]))
                for score, value in zip(scores, self.values[s][oldest:, kv_head], strict=False):
                    out[t, head] += math.exp(score) / total * value.double()
        return out


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]()


@pytest.mark.parametrize("block_size", [1, 3, 4, 64])
@pytest.mark.parametrize("name", BATCHES)
def test_paged_attention_is_attention_over_the_dense_tensors(
    backend: Any, name: str, block_size: int
) -> None:
    case = Case(BATCHES[name], block_size=block_size)
    torch.testing.assert_close(case.attend(backend).double(), case.by_hand(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_each_kv_head_serves_its_group_of_query_heads(backend: Any, heads: tuple[int, int]) -> None:
    case = Case(BATCHES["prefill and decode"], heads=heads)
    torch.testing.assert_close(case.attend(backend).double(), case.by_hand(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 100])
def test_a_window_of_w_shows_a_query_w_positions_its_own_included(
    backend: Any, window: int
) -> None:
    case = Case(BATCHES["prefill and decode"])
    right = case.by_hand(window=window)
    torch.testing.assert_close(
        case.attend(backend, window=window).double(), right, atol=1e-5, rtol=0
    )
    if window < 100:
        assert not torch.allclose(right, case.by_hand(window=window + 1), atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"soft_cap": 0.7},
        {"sinks": torch.tensor([-1.0, 0.5, 2.0, 0.0])},
        {"soft_cap": 0.5, "window": 5},
        {"sinks": torch.tensor([3.0, -2.0, 1.0, 0.5]), "window": 3},
        {"soft_cap": 1.0, "sinks": torch.tensor([3.0, -2.0, 1.0, 0.5]), "window": 6},
    ],
    ids=lambda options: "+".join(options),
)
@pytest.mark.parametrize("name", ["prompts", "decode", "prefill and decode"])
def test_soft_cap_and_sinks(backend: Any, name: str, options: dict[str, Any]) -> None:
    case = Case(BATCHES[name])
    right = case.by_hand(**options)
    torch.testing.assert_close(case.attend(backend, **options).double(), right, atol=1e-5, rtol=0)
    for option in options:
        without = {k: v for k, v in options.items() if k != option}
        assert not torch.allclose(right, case.by_hand(**without), atol=1e-3)


@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("name", BATCHES)
def test_bfloat16_comes_out_as_bfloat16_and_near(
    backend: Any, name: str, soft_cap: float | None
) -> None:
    case = Case(BATCHES[name], dtype=torch.bfloat16)
    out = case.attend(backend, soft_cap=soft_cap)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), case.by_hand(soft_cap=soft_cap), atol=0.03, rtol=0.03)


def test_it_agrees_with_torchs_own_attention(backend: Any) -> None:
    case = Case([(0, 21)])
    q, k, v = (x.transpose(0, 1)[None] for x in (case.q, case.keys[0], case.values[0]))
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)
    torch.testing.assert_close(case.attend(backend), right[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_only_the_asked_layer_is_read(backend: Any) -> None:
    case = Case(BATCHES["prefill and decode"], layer=2)
    before = case.attend(backend)
    case.cache.k[:2] = -77.0
    case.cache.v[:2] = 77.0
    assert torch.equal(case.attend(backend), before)


def test_neither_inputs_nor_cache_are_changed(backend: Any) -> None:
    case = Case(BATCHES["prefill and decode"])
    tensors = (case.q, case.k, case.v, case.cache.k, case.cache.v, case.batch.block_tables)
    before = [tensor.clone() for tensor in tensors]
    case.attend(backend, window=3)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_a_second_call_leaves_the_result_of_the_first_alone(backend: Any) -> None:
    small, large = Case(BATCHES["prompts"]), Case(BATCHES["decode"])
    for case in (small, large, small):
        first = case.attend(backend)
        kept = first.clone()
        large.attend(backend)
        assert torch.equal(first, kept)


def test_one_backend_serves_caches_of_several_shapes_and_types() -> None:
    backend = SdpaAttention()
    for dtype, heads, size in (
        (torch.float32, (4, 2), 4),
        (torch.bfloat16, (4, 4), 3),
        (torch.float32, (2, 1), 16),
    ):
        case = Case(BATCHES["prefill and decode"], dtype=dtype, heads=heads, block_size=size)
        tolerance = 1e-5 if dtype is torch.float32 else 0.03
        torch.testing.assert_close(
            case.attend(backend).double(), case.by_hand(), atol=tolerance, rtol=tolerance
        )


def test_more_sequences_decode_at_once_than_a_group_holds(backend: Any) -> None:
    case = Case([(3 * i % 29 + 1, 1) for i in range(21)])
    torch.testing.assert_close(case.attend(backend).double(), case.by_hand(), atol=1e-5, rtol=0)


def test_a_neighbour_full_of_nan_is_not_seen(backend: Any) -> None:
    sequences = BATCHES["prefill and decode"]
    clean, spoilt = Case(sequences), Case(sequences)
    table = spoilt.batch.block_tables[3, : -(-spoilt.batch.context_lens[3] // 4)]
    spoilt.cache.k[:, table] = float("nan")
    spoilt.cache.v[:, table] = float("nan")
    before, after = clean.attend(backend), spoilt.attend(backend)
    rows = [t for s in (0, 1, 2, 4) for t in range(*clean.batch.query_starts[s : s + 2])]
    assert torch.equal(before[rows], after[rows])
    assert after[clean.batch.query_starts[3]].isnan().all()


def test_backends_are_known_by_name() -> None:
    assert isinstance(get_backend(None), SdpaAttention)
    assert isinstance(get_backend("sdpa"), SdpaAttention)
    assert isinstance(get_backend("cpu"), CpuAttention)
    assert get_backend("reference") is reference_attention
    own = lambda *_, **__: None  # noqa: E731
    assert get_backend(own) is own


@pytest.mark.parametrize(
    ("dtype", "best"),
    [
        (torch.float32, CpuAttention),
        (torch.bfloat16, CpuAttention),
        (torch.float16, SdpaAttention),
        (torch.float64, SdpaAttention),
    ],
)
def test_the_best_is_what_the_model_can_use(dtype: torch.dtype, best: type) -> None:
    class Model:
        device = torch.device("cpu")

    Model.dtype = dtype  # type: ignore[attr-defined]
    assert isinstance(get_backend(None, Model()), best)
    Model.device = torch.device("meta")
    assert isinstance(get_backend(None, Model()), SdpaAttention)


@pytest.mark.parametrize("wrong", ["flash", "", 3, object()])
def test_another_name_is_refused_with_those_there_are(wrong: Any) -> None:
    with pytest.raises(
        InvalidConfigError, match="expected 'reference', 'sdpa', 'cpu' or a function"
    ):
        get_backend(wrong)
