"""bfloat16 is judged by its logits: no further from fp32 than transformers' own bfloat16."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models import TINY_FAMILIES, tiny
from tests.helpers.parity import Observed, Truth, prompt_of, tiny_truth


@cache
def in_bfloat16(family: str) -> Truth:
    return Truth(tiny(family).to(torch.bfloat16))


@pytest.mark.parametrize("attention", [None, "cpu", "sdpa", "reference"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logits_in_bfloat16_are_as_near_to_fp32_as_transformers_own(
    family: str, attention: str | None
) -> None:
    truth, exact = in_bfloat16(family), tiny_truth(family)
    config = EngineConfig(block_size=4, num_blocks=20, max_num_batched_tokens=11)
    engine = ContinuousEngine(truth.model, config=config, attention=attention)
    assert engine.core.cache.k.dtype is torch.bfloat16
    observed = Observed(engine)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    for length in (9, 30, 17):
        engine.add_request(prompt_of(length, 7), params)
    observed.run()
    ours, theirs, rows = 0.0, 0.0, 0
    for name, output in observed.final.items():
        token_ids = [*output.prompt_token_ids, *output.token_ids]
        own, right = truth.logits(token_ids), exact.logits(token_ids)
        for position, found in observed.logits_of(name).items():
            for row in found:
                ours += float((row - right[position]).pow(2).sum())
                theirs += float((own[position] - right[position]).pow(2).sum())
                rows += 1
                assert float((row - own[position]).abs().max()) < 0.5
    assert rows > 24
    assert ours < 2 * theirs
