"""The default model, for real: tokens of `generate`, chat, and text that streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from tests.helpers.parity import TOLERANCE, Observed, Tally, Truth, assert_parity

pytestmark = pytest.mark.real_model

TEXTS = [
    "The sky is blue because",
    "Once upon a time",
    "def fibonacci(n):\n",
    "The capital of France is",
    "1, 2, 3, 5, 8, 13,",
    "To make a good cup of tea, first",
    "Q: What is the largest planet of the solar system, and how many moons has it?\nA:",
    "In the beginning of the nineteenth century, travelling from one town to the next took days. "
    "Roads were bad, inns were few, and",
]
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def loaded() -> tuple[Truth, Any]:
    from paged_engine.models.default_model import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(None, dtype=torch.float32, progress=False)
    return Truth(model), tokenizer


def own_difference(truth: Truth, tokenizer: Any, text: str) -> float:
    """Between the logits of transformers' cached decoding and those of its pass over everything."""
    prompt = tokenizer(text, return_tensors="pt")
    output = truth.model.generate(
        **prompt,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    whole = truth.logits(output.sequences[0].tolist())
    decoded = torch.cat(output.logits)
    start = prompt.input_ids.shape[1] - 1
    return float((decoded - whole[start : start + len(decoded)]).abs().max())


@pytest.fixture(scope="module")
def tolerance(loaded: tuple[Truth, Any]) -> float:
    """1e-4, or three times what transformers' two ways to compute the same logits differ by.

    They are up to 45 here, and rounding goes with their size: decoding with a cache and one pass
    over everything differ by almost 1e-4 in transformers itself.  Those two share one library for
    their products; the fused path has another, and with AVX2 alone differs by 2.5 times as much.
    """
    own = max(own_difference(*loaded, text) for text in TEXTS)
    assert own < 3e-4
    return max(TOLERANCE, 3 * own)


def engine_for(loaded: tuple[Truth, Any], **options: Any) -> Observed:
    truth, tokenizer = loaded
    attention = options.pop("attention", None)
    config = EngineConfig.from_options(**{"num_blocks": 64, **options})
    return Observed(ContinuousEngine(truth.model, tokenizer, config, attention=attention))


WAYS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "blocks of one token": {"block_size": 1, "num_blocks": 1000},
    "blocks of 64 tokens": {"block_size": 64, "num_blocks": 16},
    "by transformers' modules": {"attention": "cpu"},
    "chunks of 11 tokens, by the reference": {
        "max_num_batched_tokens": 11,
        "attention": "reference",
    },
    "a pool that forces preemption": {"block_size": 4, "num_blocks": 30, "max_num_seqs": 5},
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[] if way == "all at once" else pytest.mark.slow) for way in WAYS],
)
def test_eight_prompts_get_the_tokens_and_logits_of_generate(
    loaded: tuple[Truth, Any], way: str, tally: Tally, tolerance: float
) -> None:
    observed = engine_for(loaded, **WAYS[way])
    params = SamplingParams(max_tokens=NUM_TOKENS)
    asked = {observed.engine.add_request(text, params): params for text in TEXTS}
    observed.run()
    assert_parity(observed, loaded[0], asked, tally, tolerance)
    assert (observed.count("preempted") > 0) == ("preemption" in way)


@pytest.mark.slow
def test_prompts_that_join_one_by_one_get_them_too(
    loaded: tuple[Truth, Any], tally: Tally, tolerance: float
) -> None:
    observed = engine_for(loaded, max_num_batched_tokens=24)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    line, asked = list(TEXTS), {}

    def between(step: int) -> None:
        if line:
            asked[observed.engine.add_request(line.pop(), params)] = params

    between(0)
    observed.run(between)
    assert len(asked) == len(TEXTS)
    assert_parity(observed, loaded[0], asked, tally, tolerance)


@pytest.mark.slow
def test_chat_messages_go_through_the_template_and_share_its_beginning(
    loaded: tuple[Truth, Any], tally: Tally, tolerance: float
) -> None:
    truth, tokenizer = loaded
    observed = engine_for(loaded)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    asked = {}
    for question in ("What is gravity?", "Name three colours."):
        messages = [{"role": "user", "content": question}]
        name = observed.engine.add_request(messages, params)
        observed.run()
        asked[name] = params
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        output = observed.final[name]
        assert list(output.prompt_token_ids) == list(ids["input_ids"])
        assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert output.text.strip()
    assert observed.count("hit") > 0
    assert_parity(observed, truth, asked, tally, tolerance)


MULTI_BYTE = [
    "Translate to Chinese: Good morning. Answer: 早上好。 Translate to Chinese: Thank you. Answer:",
    "🙂🙃😀😁😂🙂🙃😀😁😂🙂🙃😀",
    "Ünïcödé: naïve café, Straße, Ωμέγα, Ünïcödé: naïve café, Straße,",
]


@pytest.mark.parametrize("text", MULTI_BYTE)
def test_text_of_several_bytes_a_character_streams_whole(
    loaded: tuple[Truth, Any], text: str
) -> None:
    _, tokenizer = loaded
    observed = engine_for(loaded)
    pieces = [
        output.completions[0]
        for output in observed.engine.stream(text, SamplingParams(max_tokens=40, ignore_eos=True))
    ]
    token_ids = pieces[-1].token_ids
    whole = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert "".join(piece.new_text for piece in pieces) == pieces[-1].text == whole
    assert any(ord(character) > 127 for character in whole)
    assert len(pieces) == 40


@pytest.mark.slow
def test_any_tokens_at_all_stream_to_their_text(loaded: tuple[Truth, Any]) -> None:
    """Sampled hot, the tokens are pieces of characters in no order."""
    _, tokenizer = loaded
    observed = engine_for(loaded)
    params = SamplingParams(temperature=5.0, seed=3, max_tokens=30, ignore_eos=True)
    names = [observed.engine.add_request(text, params) for text in MULTI_BYTE]
    texts = dict.fromkeys(names, "")
    while observed.engine.has_unfinished:
        for output in observed.step():
            texts[output.request_id] += output.completions[0].new_text
    for name in names:
        output = observed.final[name]
        wanted = tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert texts[name] == output.text == wanted
