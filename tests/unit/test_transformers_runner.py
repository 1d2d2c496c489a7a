"""The runner: what it reads from a model, its forward pass, and its probe."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig
from paged_engine.attention import reference_attention
from paged_engine.batch import pack
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.models import TINY_FAMILIES, ModelRunner, TransformersRunner, tiny
from paged_engine.models.probe import PROBE_LENGTHS
from paged_engine.models.transformers_runner import ATTENTION_NAME
from paged_engine.request import Request
from tests.helpers.parity import prompt_of, tiny_truth


class Spy:
    """The reference, which writes down how it is called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, q: Any, k: Any, v: Any, layer: int, cache: Any, batch: Any, **o: Any) -> Any:
        shapes = (tuple(q.shape), tuple(k.shape), tuple(v.shape))
        written = cache.k[layer].abs().sum() > 0
        self.calls.append({"layer": layer, "shapes": shapes, "written": bool(written), **o})
        return reference_attention(q, k, v, layer, cache, batch, **o)


def runner_for(family: str, attend: Any = reference_attention) -> TransformersRunner:
    return TransformersRunner(tiny_truth(family).model, attend)


def scheduled(*prompts: list[int], block_size: int = 4) -> tuple[dict[Request, int], int]:
    requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
    used = 0
    for request in requests:
        count = -(-request.num_tokens // block_size)
        request.block_table = list(range(used, used + count))
        used += count
    return {request: request.num_tokens for request in requests}, used


def cache_for(runner: TransformersRunner, num_blocks: int, block_size: int = 4) -> PagedKVCache:
    return PagedKVCache(
        runner.kv_shape, num_blocks, block_size, dtype=runner.dtype, device=runner.device
    )


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_it_is_a_model_runner_with_what_the_configuration_says(family: str) -> None:
    runner = runner_for(family)
    assert isinstance(runner, ModelRunner)
    head_dim = 32 if family in ("qwen3", "gemma2", "gemma3_text") else 16
    num_kv_heads = 4 if family in ("gpt2", "opt") else 2
    assert runner.kv_shape == KVCacheShape(2, num_kv_heads, head_dim)
    assert (runner.vocab_size, runner.max_model_len) == (256, 512)
    assert runner.eos_token_ids == {2}
    assert (runner.dtype, runner.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(
    ("eos", "wanted"), [(7, {7}), ([7, 8], {7, 8}), (None, {2})], ids=["one", "several", "none"]
)
def test_ends_of_sequence_are_those_that_generate_stops_at(eos: Any, wanted: set[int]) -> None:
    model = tiny()
    model.generation_config.eos_token_id = eos
    assert TransformersRunner(model, reference_attention).eos_token_ids == wanted


def test_a_model_without_an_end_of_sequence_has_none() -> None:
    model = tiny()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    assert TransformersRunner(model, reference_attention).eos_token_ids == frozenset()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_forward_pass_gives_the_logits_after_the_last_token_of_each(family: str) -> None:
    runner, truth = runner_for(family), tiny_truth(family)
    prompts = [prompt_of(length, 3) for length in (6, 1, 15)]
    counts, used = scheduled(*prompts)
    logits = runner.forward(pack(counts, 4, "cpu"), cache_for(runner, used))
    assert logits.shape == (3, 256)
    right = torch.stack([truth.logits(prompt)[-1] for prompt in prompts])
    torch.testing.assert_close(logits, right, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_attention_is_called_once_for_each_layer_with_packed_tensors(family: str) -> None:
    spy = Spy()
    runner = runner_for(family, spy)
    counts, used = scheduled(prompt_of(6, 3), prompt_of(5, 3))
    runner.forward(pack(counts, 4, "cpu"), cache_for(runner, used))
    assert [call["layer"] for call in spy.calls] == [0, 1]
    kv = (11, runner.kv_shape.num_kv_heads, runner.kv_shape.head_dim)
    assert all(call["shapes"] == ((11, 4, kv[2]), kv, kv) for call in spy.calls)
    assert all(call["written"] for call in spy.calls)


def options_of(family: str) -> list[dict[str, Any]]:
    spy = Spy()
    runner = runner_for(family, spy)
    counts, used = scheduled(prompt_of(6, 3))
    runner.forward(pack(counts, 4, "cpu"), cache_for(runner, used))
    return spy.calls


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None, None]),
        ("mistral", [12, 12]),
        ("gemma2", [12, None]),
        ("gemma3_text", [12, None]),
        ("phi3", [None, None]),
    ],
)
def test_each_layer_gets_its_own_window(family: str, windows: list[int | None]) -> None:
    assert [call["window"] for call in options_of(family)] == windows


def test_the_soft_cap_is_passed_on() -> None:
    assert [call["soft_cap"] for call in options_of("gemma2")] == [2.0, 2.0]
    assert [call["soft_cap"] for call in options_of("llama")] == [None, None]


@pytest.mark.parametrize(
    ("family", "scale"),
    [("llama", 16**-0.5), ("gemma2", 32**-0.5), ("gpt2", 16**-0.5), ("opt", 1.0)],
)
def test_the_scale_is_the_models(family: str, scale: float) -> None:
    """OPT scales its queries itself."""
    assert [call["scale"] for call in options_of(family)] == pytest.approx([scale, scale])


def test_gradients_are_not_kept() -> None:
    runner = runner_for("llama")
    counts, used = scheduled(prompt_of(6, 3))
    logits = runner.forward(pack(counts, 4, "cpu"), cache_for(runner, used))
    assert not logits.requires_grad


def test_the_models_attention_is_back_even_if_attention_raises() -> None:
    model = tiny()

    def attend(*_: Any, **__: Any) -> Any:
        assert model.config._attn_implementation == ATTENTION_NAME
        raise ValueError("as planned")

    runner = TransformersRunner(model, attend)
    counts, used = scheduled(prompt_of(6, 3))
    with pytest.raises(ValueError, match="as planned"):
        runner.forward(pack(counts, 4, "cpu"), cache_for(runner, used))
    assert model.config._attn_implementation == "sdpa"


def test_two_models_may_be_run_in_two_threads() -> None:
    """Each is in the midst of its forward pass when the other begins a layer."""
    both = threading.Barrier(2, timeout=60)

    def attend(*args: Any, **options: Any) -> torch.Tensor:
        both.wait()
        return reference_attention(*args, **options)

    models = [tiny("llama", seed) for seed in (0, 1)]
    counts, _ = scheduled(prompt_of(6, 3), prompt_of(9, 4))
    right = [runner_logits(TransformersRunner(m, reference_attention), counts) for m in models]
    got: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        got[number] = runner_logits(TransformersRunner(models[number], attend), counts)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got[0], right[0]) and torch.equal(got[1], right[1])


def runner_logits(runner: TransformersRunner, counts: dict[Request, int]) -> torch.Tensor:
    return runner.forward(pack(counts, 4, "cpu"), cache_for(runner, 8))


# ------------------------------------------------------------------ the probe


def probe(runner: TransformersRunner, block_size: int) -> None:
    runner.probe(block_size).check(runner)


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_probe_passes_a_model_that_is_served_right(family: str, block_size: int) -> None:
    probe(runner_for(family), block_size)


def test_the_probe_packs_two_prompts_and_then_a_token_of_each() -> None:
    spy = Spy()
    probe(runner_for("llama", spy), 16)
    num_tokens = [call["shapes"][0][0] for call in spy.calls]
    assert num_tokens == [sum(PROBE_LENGTHS) - 2] * 2 + [2, 2]
    assert [call["layer"] for call in spy.calls] == [0, 1, 0, 1]


class Twice(torch.nn.Module):
    """Attention that calls the function twice a layer."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> Any:
        self.inner(*args, **options)
        return self.inner(*args, **options)


def test_a_model_that_calls_attention_twice_a_layer_is_refused() -> None:
    model = tiny()
    model.model.layers[1].self_attn = Twice(model.model.layers[1].self_attn)
    with pytest.raises(UnsupportedModelError, match=r"for layers \[0, 1, 1\]; expected each of it"):
        TransformersRunner(model, reference_attention)


def test_a_model_whose_layers_have_the_same_number_is_refused() -> None:
    model = tiny()
    model.model.layers[1].self_attn.layer_idx = 0
    with pytest.raises(UnsupportedModelError, match=r"layers \[0, 0\]; expected each"):
        TransformersRunner(model, reference_attention)


def test_the_probe_can_be_left_out() -> None:
    spy = Spy()
    model = tiny()
    ContinuousEngine(model, config=EngineConfig(num_blocks=8, probe=False), attention=spy)
    assert not spy.calls
    ContinuousEngine(model, config=EngineConfig(num_blocks=8), attention=spy)
    assert len(spy.calls) == 4


def test_the_probe_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    probe(runner_for("llama"), 16)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("vocab_size", [3, 5, 1000])
def test_the_probe_fits_any_vocabulary(vocab_size: int) -> None:
    probe(TransformersRunner(tiny(vocab_size=vocab_size), reference_attention), 4)
