"""The fused path: who takes it, that it says the same, and what becomes of the weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.errors import UnsupportedModelError
from paged_engine.kernels.library import PRODUCTS, load_kernels
from paged_engine.models import (
    LlamaRunner,
    ModelRunner,
    TransformersRunner,
    choice,
    packed_linear,
    tiny,
)
from paged_engine.models.llama_family import FAMILIES, num_weights
from paged_engine.models.packed_linear import PanelLinear, pack_linear, ways_to_multiply
from tests.helpers.parity import Observed, Truth, assert_parity, prompt_of

LLAMA_LIKE = {name.lower() for name in FAMILIES}
CONFIG = EngineConfig(block_size=4, num_blocks=48, max_num_batched_tokens=16)


def runner_of(model: PreTrainedModel, **options: Any) -> ModelRunner:
    return ContinuousEngine(model, config=CONFIG, **options).core.runner


def assert_served(model: PreTrainedModel, truth: Truth | None = None, **options: Any) -> None:
    truth = Truth(model) if truth is None else truth
    observed = Observed(ContinuousEngine(model, config=CONFIG, **options))
    params = SamplingParams(max_tokens=12)
    asked = {observed.engine.add_request(prompt_of(n, 5), params): params for n in (9, 26, 1, 17)}
    observed.run()
    assert_parity(observed, truth, asked)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma2", "phi3", "gpt2"]
)
def test_families_that_are_known_are_fused_and_others_are_not(family: str) -> None:
    model = tiny(family)
    assert isinstance(runner_of(model), LlamaRunner) == (family in LLAMA_LIKE)
    assert isinstance(runner_of(model, attention="cpu"), TransformersRunner)


VARIANTS: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied to the embedding": {"tie_word_embeddings": True},
    "one query head a KV head": {"num_key_value_heads": 4},
    "one KV head": {"num_key_value_heads": 1},
    "a head size that is no multiple of 16": {"head_dim": 20},
    "a width that is no multiple of 16": {"intermediate_size": 90, "hidden_size": 56},
    "scaled positions": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_llama_get_the_tokens_of_transformers(name: str) -> None:
    model = tiny("llama", **VARIANTS[name])
    assert isinstance(runner_of(model), LlamaRunner)
    assert_served(model)


def test_windows_of_some_layers_are_kept() -> None:
    model = tiny(
        "qwen2",
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention"],
    )
    assert isinstance(runner_of(model), LlamaRunner)
    assert_served(model)


# ------------------------------------------------------------------ models that were changed


class Adapted(nn.Module):
    """What an adapter puts in the place of a product."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 0.5


class DoubledLinear(nn.Linear):
    """A product of another class, as quantised ones are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 0.5)


def pre_hook(model: Any) -> None:
    model.model.norm.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1,))


def adapter(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.v_proj = Adapted(attention.v_proj)


def other_class(model: Any) -> None:
    model.lm_head.__class__ = DoubledLinear


def other_forward(model: Any) -> None:
    norm = model.model.layers[0].input_layernorm
    right = norm.forward
    norm.forward = lambda x: right(x) * 0.5


def parametrized(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.parametrizations.weight.original0.mul_(0.5)


def other_activation(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


CHANGES: list[Callable[[Any], None]] = [
    *(hook, pre_hook, adapter, other_class, other_forward, parametrized, other_activation)
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_somebody_changed_is_run_by_its_own_modules(
    change: Callable[[Any], None],
) -> None:
    model = tiny("llama")
    before = Truth(copy.deepcopy(model)).logits([5, 6, 7])
    change(model)
    assert not torch.allclose(Truth(model).logits([5, 6, 7]), before), "nothing was changed"
    assert isinstance(runner_of(model), TransformersRunner)
    assert_served(model)


def test_another_activation_of_the_configuration_is_not_fused() -> None:
    model = tiny("llama", hidden_act="gelu")
    assert isinstance(runner_of(model), TransformersRunner)
    assert_served(model)


# ------------------------------------------------------------------ weights


def test_a_users_model_keeps_its_weights() -> None:
    model = tiny("llama")
    runner_of(model)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert_served(model)


def test_a_model_of_the_engines_own_is_freed_and_says_so() -> None:
    model = tiny("llama")
    truth = Truth(copy.deepcopy(model))
    assert_served(model, truth, owns_model=True)
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert model.model.embed_tokens.weight.device.type == "cpu"
    with pytest.raises(
        UnsupportedModelError, match="packed for an engine and freed; load it apart"
    ):
        model(input_ids=torch.tensor([[1, 2]]))


def test_without_memory_for_a_copy_the_modules_run_and_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama")
    need = 4 * num_weights(model)
    monkeypatch.setattr(choice, "free_memory", lambda device: need - 1)
    assert isinstance(runner_of(model), TransformersRunner)
    assert "which is slower: its packed weights would take" in capsys.readouterr().err
    assert isinstance(runner_of(model, owns_model=True), LlamaRunner)


NUMBERS = [torch.float32, torch.bfloat16]
WAYS = [*PRODUCTS.items(), *itertools.product(("oneDNN", "torch"), NUMBERS)]


@pytest.fixture
def packed_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, torch.dtype], None]:
    """As if that way were the fastest here."""

    def choose(way: str, dtype: torch.dtype) -> None:
        if way not in ways_to_multiply(load_kernels(), dtype):
            pytest.skip(f"this processor has no way {way} for {dtype}, or this torch has not")
        monkeypatch.setattr(packed_linear, "best_way", lambda *_: way)

    return choose


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_packed_product_is_the_product(
    dtype: torch.dtype, has_bias: bool, way: str, packed_by: Callable[[str, torch.dtype], None]
) -> None:
    packed_by(way, dtype)
    parts = [nn.Linear(40, out, bias=has_bias).to(dtype) for out in (7, 24, 33)]
    biases = [part.bias for part in parts] if has_bias else None
    packed = pack_linear(load_kernels(), [part.weight for part in parts], biases)
    assert isinstance(packed, PanelLinear) == (way in PRODUCTS)
    for count in (1, 5, 32, 70):
        x = torch.randn(count, 40).to(dtype)
        with torch.inference_mode():
            expected = torch.cat([part(x) for part in parts], dim=1)
            got = packed(x)
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("way", [way for way, dtype in WAYS if dtype == torch.float32])
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without biases, and with
def test_however_weights_are_packed_the_tokens_are_the_same(
    family: str,
    way: str,
    packed_by: Callable[[str, torch.dtype], None],
) -> None:
    packed_by(way, torch.float32)
    model = tiny(family)
    runner = runner_of(model)
    assert isinstance(runner, LlamaRunner)
    assert isinstance(runner._head, PanelLinear) == (way in PRODUCTS)
    assert_served(model)
