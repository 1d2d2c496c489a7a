"""Models and attention functions that cannot give the right tokens are refused, with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.attention import SdpaAttention, reference_attention
from paged_engine.errors import InvalidRequestError, UnsupportedModelError
from paged_engine.models import tiny
from tests.helpers.parity import Observed, Tally, Truth, assert_parity, prompt_of, tiny_truth
from tests.models.families import tiny_of

CONFIG = EngineConfig(block_size=8, num_blocks=32)
USUAL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make(kind: str, auto: Any = AutoModelForCausalLM, **values: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15)
    return model.eval()


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **values}}


LONGROPE = rope(
    "longrope",
    short_factor=[1.0] * 8,
    long_factor=[2.0] * 8,
    original_max_position_embeddings=64,
)

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "bloom": (
        lambda: make("bloom", vocab_size=256, hidden_size=64, n_layer=2, n_head=4),
        "position_ids",
    ),
    "mpt": (
        lambda: make("mpt", vocab_size=256, d_model=64, n_layers=2, n_heads=4),
        "position_ids",
    ),
    "mamba": (
        lambda: make("mamba", vocab_size=256, hidden_size=64, num_hidden_layers=2),
        "position_ids",
    ),
    "rwkv": (
        lambda: make(
            "rwkv", vocab_size=256, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64
        ),
        "position_ids",
    ),
    "xglm, which ignores the registry": (
        lambda: make(
            "xglm",
            vocab_size=256,
            d_model=64,
            num_layers=2,
            attention_heads=4,
            ffn_dim=128,
            max_position_embeddings=256,
            **SPECIAL,
        ),
        "never called the attention function",
    ),
    "gpt_neo, which ignores the registry": (
        lambda: make(
            "gpt_neo",
            vocab_size=256,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
            max_position_embeddings=256,
            **SPECIAL,
        ),
        "never called the attention function",
    ),
    "falcon, which ignores the registry": (
        lambda: make("falcon", **USUAL),
        "never called the attention function",
    ),
    "deepseek with an indexer, which chooses among the keys of long texts only": (
        lambda: tiny_of("deepseek_v32"),
        "uses indexer, indices, which this engine does not know",
    ),
    "jamba, half of it without attention": (
        lambda: make("jamba", **USUAL, attn_layer_period=2, attn_layer_offset=1, num_experts=2),
        r"for layers \[1\]; expected each of its 2 layers once",
    ),
    "gemma4, with layers of two sizes": (
        lambda: tiny_of("gemma4_text"),
        r"differ in size \(2 heads of 16 and 16, 2 heads of 512 and 512\)",
    ),
    "moshi, whose cache forgets what its mask lets it see": (
        lambda: tiny_of("moshi"),
        "a token sees all before it but transformers' cache keeps the last 12 tokens",
    ),
    "t5": (
        lambda: make(
            "t5",
            AutoModelForSeq2SeqLM,
            vocab_size=256,
            d_model=64,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            d_kv=16,
        ),
        "has an encoder",
    ),
    "bert, which looks both ways": (
        lambda: make("bert", **{k: v for k, v in USUAL.items() if k != "num_key_value_heads"}),
        "masks attention neither causally nor by a sliding window or chunks",
    ),
    "roberta, whose positions begin at 2": (
        lambda: tiny_of("roberta"),
        "other logits packed and paged than alone",
    ),
    "a base model without a head": (
        lambda: make("llama", AutoModel, **USUAL),
        "no language-model head",
    ),
    "no model at all": (lambda: "gpt2", "the model is a str"),
    "a module that is no model": (lambda: torch.nn.Linear(2, 2), "the model is a Linear"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(name: str) -> None:
    factory, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        ContinuousEngine(factory(), config=CONFIG)


ALSO_SERVED: dict[str, Callable[[], PreTrainedModel]] = {
    "dynamic rope": lambda: make("llama", **USUAL, **rope("dynamic")),
    "longrope": lambda: make("llama", **USUAL, **LONGROPE),
    "linear rope": lambda: make("llama", **USUAL, **rope("linear")),
    "llama3 rope": lambda: make(
        "llama",
        **USUAL,
        **rope(
            "llama3",
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "multi-query attention": lambda: make("llama", **USUAL | {"num_key_value_heads": 1}),
    "stablelm, which passes no keyword arguments down": lambda: make("stablelm", **USUAL),
    "granite, with a scale of its own": lambda: make("granite", **USUAL, attention_multiplier=0.1),
    "mixtral": lambda: make("mixtral", **USUAL, num_local_experts=4),
    "gpt_neox": lambda: make("gpt_neox", **USUAL),
    "cohere": lambda: make("cohere", **USUAL),
    "qwen2 with a window in some layers": lambda: make(
        "qwen2",
        **USUAL,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "deepseek with latent attention, its values narrower than its keys": lambda: tiny_of(
        "deepseek_v3"
    ),
    "gemma3n, whose upper layers use the keys of lower ones": lambda: tiny_of("gemma3n_text"),
    "gemma2 without a soft cap": lambda: tiny("gemma2", attn_logit_softcapping=None),
}


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("name", ALSO_SERVED)
@pytest.mark.filterwarnings("ignore")
def test_other_models_of_transformers_are_served_token_for_token(
    name: str, attention: str, tally: Tally
) -> None:
    model = ALSO_SERVED[name]()
    serve(model, attention, tally)


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.filterwarnings("ignore")
def test_attention_sinks_take_part_in_the_softmax(attention: str, tally: Tally) -> None:
    values = USUAL | {"num_key_value_heads": 2}
    model = make("gpt_oss", **values, head_dim=16, num_local_experts=4, sliding_window=12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(1.0, 1.0)
    serve(model, attention, tally)


def serve(model: PreTrainedModel, attention: str, tally: Tally) -> None:
    config = EngineConfig(block_size=4, num_blocks=12, max_num_batched_tokens=9)
    observed = Observed(ContinuousEngine(model, config=config, attention=attention))
    params = SamplingParams(max_tokens=8)
    prompts = [prompt_of(length, 8) for length in (13, 27, 5)]
    asked = {observed.engine.add_request(prompt, params): params for prompt in prompts}
    observed.run()
    assert_parity(observed, Truth(model), asked, tally)


@pytest.mark.parametrize(
    ("make_model", "most"),
    [
        (lambda: make("llama", **USUAL, **LONGROPE), 64),
        (lambda: make("llama", **USUAL, **rope("dynamic")), 512),
        (lambda: tiny_of("llama4_text", attention_chunk_size=24), 24),
    ],
    ids=["longrope", "dynamic rope", "chunks"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_depends_on_the_length_is_served_up_to_the_length_at_which_it_begins(
    make_model: Callable[[], PreTrainedModel], most: int, tally: Tally
) -> None:
    """And there to the last position, although the model was used for longer ones before."""
    model = make_model()
    engine = ContinuousEngine(model, config=CONFIG)
    assert engine.config.max_model_len == most
    with pytest.raises(InvalidRequestError, match="shorten the prompt"):
        engine.add_request(prompt_of(most, 1), SamplingParams(max_tokens=4))
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt_of(most + 9, 2)]))
    observed = Observed(engine)
    params = SamplingParams(max_tokens=4)
    length = min(most, 8 * 32) - 4
    asked = {engine.add_request(prompt_of(n, 8), params): params for n in (length, length - 7)}
    observed.run()
    assert_parity(observed, Truth(model), asked, tally)


@pytest.mark.parametrize("attention", [None, "cpu"])
def test_a_window_that_only_the_mask_knows_is_kept_however_wide(
    attention: str | None, tally: Tally
) -> None:
    """The model forgets to tell attention; what transformers' own mask does counts."""
    model = tiny("mistral", sliding_window=40)
    for layer in model.model.layers:
        layer.self_attn.config = copy.copy(model.config)
        layer.self_attn.config.sliding_window = None
    engine = ContinuousEngine(model, config=CONFIG, attention=attention)
    if attention is not None:
        assert engine.core.runner.windows == [40, 40]  # type: ignore[attr-defined]
    observed = Observed(engine)
    params = SamplingParams(max_tokens=6)
    asked = {engine.add_request(prompt_of(n, 8), params): params for n in (70, 38)}
    observed.run()
    assert_parity(observed, Truth(model), asked, tally)


@pytest.mark.parametrize("num_positions", [2, 5, 16])
def test_a_model_shorter_than_the_probe_is_served_up_to_its_length(num_positions: int) -> None:
    model = tiny("gpt2", max_position_embeddings=num_positions)
    engine = ContinuousEngine(model, config=EngineConfig(block_size=4, num_blocks=8))
    assert engine.config.max_model_len == num_positions
    if num_positions > 2:
        prompt, params = prompt_of(2, 1), SamplingParams(max_tokens=num_positions - 2)
        wanted = Truth(model).greedy(prompt, num_positions - 2)
        assert list(engine.generate(prompt, params)[0].token_ids) == wanted


# ------------------------------------------------------------------ attention functions


def test_a_readers_own_attention_function_runs_in_the_engine(tally: Tally) -> None:
    layers = []

    def attend(*args: Any, **options: Any) -> torch.Tensor:
        layers.append(args[3])
        return reference_attention(*args, **options)

    truth = tiny_truth("gemma2")
    observed = Observed(ContinuousEngine(truth.model, config=CONFIG, attention=attend))
    layers.clear()
    params = SamplingParams(max_tokens=6)
    asked = {observed.engine.add_request(prompt_of(n, 8), params): params for n in (4, 15)}
    observed.run()
    assert layers == [0, 1] * observed.count("step_began")
    assert_parity(observed, truth, asked, tally)


def test_a_function_that_fuses_the_write_is_left_to_write(tally: Tally) -> None:
    class Fused:
        fuses_write = True

        def __call__(self, q: Any, k: Any, v: Any, layer: int, cache: Any, batch: Any, **o: Any):  # type: ignore[no-untyped-def]
            cache.write(layer, k, v, batch.slot_mapping)
            return reference_attention(q, k, v, layer, cache, batch, **o)

    truth = tiny_truth("llama")
    observed = Observed(ContinuousEngine(truth.model, config=CONFIG, attention=Fused()))
    params = SamplingParams(max_tokens=6)
    asked = {observed.engine.add_request(prompt_of(n, 8), params): params for n in (4, 15)}
    observed.run()
    assert_parity(observed, truth, asked, tally)


def ignores_the_past(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> torch.Tensor:
    return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def sees_the_neighbours(q: Any, k: Any, v: Any, *_: Any, scale: float, **__: Any) -> torch.Tensor:
    """Causal attention over the whole batch as if it were one sequence."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k, v, is_causal=True, scale=scale
    ).transpose(0, 1)


def is_right_in_prefill_alone(
    q: Any, k: Any, v: Any, layer: int, cache: Any, batch: Any, **options: Any
) -> torch.Tensor:
    out = SdpaAttention()(q, k, v, layer, cache, batch, **options)
    return out if max(batch.query_lens) > 1 else out * 0


def gives_nan(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return q * float("nan")


def forgets_the_scale(*args: Any, scale: float, **options: Any) -> torch.Tensor:
    return reference_attention(*args, scale=1.0, **options)


@pytest.mark.parametrize(
    "attend",
    [
        ignores_the_past,
        sees_the_neighbours,
        is_right_in_prefill_alone,
        gives_nan,
        forgets_the_scale,
    ],
)
def test_a_wrong_attention_function_is_refused(attend: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="other logits packed and paged than alone"):
        ContinuousEngine(tiny(), config=CONFIG, attention=attend)


def raises_an_error(*_: Any, **__: Any) -> torch.Tensor:
    raise KeyError("no such thing")


def returns_another_shape(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return q[:, :1]


@pytest.mark.parametrize("attend", [raises_an_error, returns_another_shape])
def test_an_attention_function_that_fails_is_refused_and_its_error_shown(attend: Any) -> None:
    model = tiny()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM cannot be run") as caught:
        ContinuousEngine(model, config=CONFIG, attention=attend)
    assert caught.value.__cause__ is not None
    assert model.config._attn_implementation == "sdpa"
