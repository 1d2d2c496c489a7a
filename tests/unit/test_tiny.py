"""Tiny models: seeded, apart from the caller's random numbers, and sensitive to faults."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from paged_engine.errors import UnsupportedModelError
from paged_engine.models import TINY_FAMILIES, tiny
from tests.helpers.parity import generate, prompt_of, tiny_truth


@pytest.fixture(params=TINY_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_weights_have_a_standard_deviation_of_at_least_a_tenth(family: str) -> None:
    model = tiny_truth(family).model
    matrices = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    assert matrices
    for name, parameter in matrices.items():
        assert float(parameter.detach().std()) >= 0.1, name


def test_it_is_a_causal_model_in_fp32_on_the_cpu_in_evaluation_mode(family: str) -> None:
    model = tiny_truth(family).model
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.get_output_embeddings() is not None
    assert model.config.get_text_config().num_hidden_layers == 2


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(family: str) -> None:
    first, again, other = tiny(family, 3), tiny(family, 3), tiny(family, 4)
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    changed = [n for n, p in first.named_parameters() if not torch.equal(p, other.get_parameter(n))]
    assert {n for n, p in first.named_parameters() if p.dim() > 1} <= set(changed)


def test_the_callers_random_numbers_are_as_if_nothing_had_been_made(family: str) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    wanted = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    tiny(family)
    got = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(wanted[0], got[0]) and wanted[1:] == got[1:]


def test_with_every_position_zeroed_greedy_ids_change(family: str) -> None:
    """With the usual weights of 0.02 they would not, and parity tests would see nothing."""
    truth = tiny_truth(family)

    def greedy_without_positions(prompt: list[int], max_tokens: int) -> list[int]:
        token_ids = list(prompt)
        for _ in range(max_tokens):
            input_ids = torch.tensor([token_ids])
            with torch.no_grad():
                output = truth.model(
                    input_ids=input_ids,
                    position_ids=torch.zeros_like(input_ids),
                    attention_mask=torch.ones_like(input_ids),
                    use_cache=False,
                )
            token_ids.append(int(output.logits[0, -1].argmax()))
        return token_ids[len(prompt) :]

    prompts = [prompt_of(length, 12) for length in (9, 20, 30)]
    differ = [greedy_without_positions(p, 12) != truth.greedy(p, 12) for p in prompts]
    assert all(differ)


def test_the_prompt_decides_the_output(family: str) -> None:
    truth = tiny_truth(family)
    outputs = {tuple(truth.greedy(prompt_of(20, seed), 8)) for seed in range(6)}
    assert len(outputs) == 6


def test_it_generates_and_ends_at_its_end_of_sequence_token(family: str) -> None:
    model = tiny(family)
    assert model.generation_config.eos_token_id == 2
    token_ids = generate(model, prompt_of(8, 1), 6)
    model.generation_config.eos_token_id = token_ids[0]
    assert generate(model, prompt_of(8, 1), 6) == token_ids[:1]


@pytest.mark.parametrize(
    ("family", "attribute", "wide"),
    [
        ("mistral", "sliding_window", 500),
        ("gemma2", "sliding_window", 500),
        ("gemma3_text", "sliding_window", 500),
        ("gemma2", "attn_logit_softcapping", 500.0),
    ],
)
def test_windows_and_soft_caps_are_such_that_leaving_them_out_changes_the_logits(
    family: str, attribute: str, wide: float
) -> None:
    truth, other = tiny_truth(family), tiny(family, **{attribute: wide})
    tokens = prompt_of(30, 2)
    with torch.no_grad():
        without = other(input_ids=torch.tensor([tokens])).logits[0]
    assert float((without - truth.logits(tokens)).abs().max()) > 0.01


def test_values_of_the_configuration_can_be_changed() -> None:
    model = tiny("llama", num_hidden_layers=3, vocab_size=99, eos_token_id=5)
    assert len(model.model.layers) == 3
    assert model.get_input_embeddings().weight.shape[0] == 99
    assert model.generation_config.eos_token_id == 5


@pytest.mark.parametrize("wrong", ["bloom", "", None])
def test_another_family_is_refused_with_those_there_are(wrong: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="expected one of llama, qwen2"):
        tiny(wrong)
