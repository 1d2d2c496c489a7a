"""Samples drawn in a crowd are those that transformers' logits and the same key give."""

from __future__ import annotations

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, Request, SamplingParams
from paged_engine.models import TINY_FAMILIES
from paged_engine.sampler import sample
from tests.helpers.parity import Observed, Tally, assert_parity, prompt_of, tiny_truth

NUM_TOKENS = 10


def drawn_from_the_truth(family: str, prompt: list[int], params: SamplingParams) -> list[list[int]]:
    """The n samples, each drawn token by token from transformers' own logits."""
    samples = []
    for index in range(params.n):
        assert params.seed is not None
        request = Request("alone", prompt, params, seed=params.seed, sample_index=index)
        for _ in range(NUM_TOKENS):
            row = tiny_truth(family).logits(request.token_ids)[-1]
            request.token_ids.append(sample(row[None], [request])[0].token_id)
        samples.append(request.output_token_ids)
    return samples


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("num_blocks", [80, 12], ids=["ample", "preempting"])
def test_samples_of_one_prompt_share_its_blocks_and_stay_independent(
    family: str, num_blocks: int
) -> None:
    prompts = [prompt_of(13, 1), prompt_of(22, 2), prompt_of(6, 3)]
    params = [
        SamplingParams(
            n=3, temperature=0.8, top_p=top_p, seed=7 + i, max_tokens=NUM_TOKENS, ignore_eos=True
        )
        for i, top_p in enumerate((1.0, 0.9, 0.5))
    ]
    config = EngineConfig(block_size=4, num_blocks=num_blocks, max_num_batched_tokens=16)
    engine = ContinuousEngine(tiny_truth(family).model, config=config)
    outputs = engine.generate(prompts, params)
    for output, prompt, asked in zip(outputs, prompts, params, strict=True):
        expected = drawn_from_the_truth(family, prompt, asked)
        assert [list(c.token_ids) for c in output.completions] == expected
        assert len({c.token_ids for c in output.completions}) == 3
    assert engine.log.of_kind("copied")
    assert bool(engine.log.of_kind("preempted")) == (num_blocks == 12)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_end_of_sequence_token_ends_a_request_where_generate_ends_it(
    family: str, tally: Tally
) -> None:
    """The third token of the second prompt is declared to be the end, for both."""
    truth = tiny_truth(family)
    prompts = [prompt_of(length, 4) for length in (5, 18, 11)]
    eos = truth.greedy(prompts[1], 12)[2]
    settings = truth.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, eos
    try:
        own = type(truth)(truth.model)
        engine = ContinuousEngine(truth.model, config=EngineConfig(num_blocks=40))
        observed = Observed(engine)
        asked = {engine.add_request(p, SamplingParams(max_tokens=12)): p for p in prompts}
        observed.run()
        assert_parity(observed, own, dict.fromkeys(asked, SamplingParams(max_tokens=12)), tally)
    finally:
        settings.eos_token_id = before
    stopped = observed.final[list(asked)[1]]
    assert stopped.finish_reason == "stop" and stopped.token_ids[-1] == eos
    assert len(stopped.token_ids) <= 3


def test_logprobs_are_those_of_transformers() -> None:
    truth = tiny_truth("qwen2")
    prompt = prompt_of(20, 5)
    engine = ContinuousEngine(
        truth.model, config=EngineConfig(num_blocks=40, max_num_batched_tokens=7)
    )
    output = engine.generate(prompt, SamplingParams(max_tokens=6, logprobs=3))[0]
    assert output.logprobs is not None and len(output.logprobs) == 6
    for place, reported in enumerate(output.logprobs):
        row = truth.logits([*prompt, *output.token_ids[:place]])[-1].log_softmax(-1)
        best = row.topk(3)
        assert reported.logprob == pytest.approx(float(row[reported.token_id]), abs=1e-4)
        assert [i for i, _ in reported.top] == best.indices.tolist()
        values = torch.tensor([value for _, value in reported.top])
        torch.testing.assert_close(values, best.values, atol=1e-4, rtol=0)
