"""The engine on an NVIDIA card: the same tokens, within its memory, and bfloat16 within bounds.

Nothing is fetched: a seeded model of the default model's shape and a small committed tokenizer
stand in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.kv_cache import CUDA_SHARE
from paged_engine.models import TINY_FAMILIES, tiny
from tests.gpu.stand_in import TOKENIZER, stand_in
from tests.helpers.parity import Observed, Tally, Truth, assert_parity, prompt_of

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA card, and there is none here", allow_module_level=True)

DEVICE = "cuda"
LENGTHS = (13, 64, 5, 30)


def serve(truth: Truth, tolerance: float = 1e-4, **options: Any) -> Observed:
    """A small pool, chunked prompts and preemption; tokens and logits are transformers' own."""
    settings = {"block_size": 8, "num_blocks": 16, "max_num_batched_tokens": 24} | options
    attention = settings.pop("attention", None)
    config = EngineConfig(**settings)
    observed = Observed(ContinuousEngine(truth.model, config=config, attention=attention))
    params = SamplingParams(max_tokens=12)
    prompts = [prompt_of(length, 8) for length in LENGTHS]
    asked = {observed.engine.add_request(prompt, params): params for prompt in prompts}
    observed.run()
    tally = assert_parity(observed, truth, asked, Tally(), tolerance)
    assert tally.num_rows >= tally.num_tokens > 0
    return observed


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_greedy_tokens_and_logits_are_those_of_transformers(family: str, attention: str) -> None:
    observed = serve(Truth(tiny(family).to(DEVICE)), attention=attention)
    assert observed.engine.core.cache.k.device.type == DEVICE


def test_the_default_models_shape_gives_transformers_tokens_under_preemption() -> None:
    """The tolerance is the default model's own on the CPU: transformers' cached decoding is off
    from its full pass by as much."""
    observed = serve(Truth(stand_in(DEVICE)), tolerance=2e-3, num_blocks=13)
    assert observed.count("preempted") > 0


def test_tokens_are_those_of_the_cpu() -> None:
    prompts = [prompt_of(length, 3) for length in LENGTHS]
    params = SamplingParams(max_tokens=16, temperature=0.8, seed=5, top_p=0.9)
    config = EngineConfig(block_size=8, num_blocks=64)
    tokens = {
        device: [
            output.token_ids
            for output in ContinuousEngine(tiny().to(device), config=config).generate(
                prompts, params
            )
        ]
        for device in ("cpu", DEVICE)
    }
    assert tokens[DEVICE] == tokens["cpu"]


def test_samples_share_their_prompt_and_aborted_requests_leave_nothing() -> None:
    engine = ContinuousEngine(tiny().to(DEVICE), config=EngineConfig(block_size=4, num_blocks=40))
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=9)
    gone = engine.add_request(prompt_of(11, 1), params)
    kept = engine.add_request(prompt_of(11, 2), params)
    engine.step()
    engine.abort(gone)
    finals = {}
    while engine.has_unfinished:
        finals |= {o.request_id: o for o in engine.step() if o.finished}
    assert len({c.token_ids for c in finals[kept].completions}) == 3
    assert engine.log.of_kind("copied")
    assert engine.pool.num_free == 40


def test_logits_that_are_no_numbers_end_their_own_request_alone() -> None:
    model = tiny().to(DEVICE)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    engine = ContinuousEngine(model, config=EngineConfig(block_size=4, num_blocks=40, probe=False))
    params = SamplingParams(max_tokens=5)
    good, bad = engine.generate([[3, 4, 5], [7, 4, 5]], params)
    assert (good.finish_reason, bad.finish_reason) == ("length", "error")
    assert not bool(engine.core.cache.k.isnan().any())


# ------------------------------------------------------------------ memory


def test_the_budget_that_was_given_is_kept_to_a_block() -> None:
    model = stand_in(DEVICE)
    before = torch.cuda.memory_allocated()
    budget = 64 << 20
    engine = ContinuousEngine(model, config=EngineConfig(kv_cache_memory=budget, block_size=16))
    taken = torch.cuda.memory_allocated() - before
    per_block = engine.core.cache.num_bytes // engine.core.cache.num_blocks
    assert budget - per_block < engine.core.cache.num_bytes <= budget
    assert engine.core.cache.num_bytes <= taken < engine.core.cache.num_bytes + (8 << 20)


def test_without_a_budget_the_cache_takes_its_share_of_what_is_free_and_no_more() -> None:
    model = stand_in(DEVICE)
    free, _ = torch.cuda.mem_get_info()
    engine = ContinuousEngine(model, config=EngineConfig(max_num_seqs=8))
    cache = engine.core.cache
    assert cache.num_bytes <= CUDA_SHARE * free
    needed = -(-8 * engine.core.runner.max_model_len // 16)
    assert cache.num_blocks <= needed
    if needed * cache.num_bytes // cache.num_blocks < CUDA_SHARE * free:
        assert cache.num_blocks == needed


def test_memory_does_not_grow_with_the_number_of_requests_served() -> None:
    config = EngineConfig(block_size=16, num_blocks=64, enable_prefix_caching=False)
    engine = ContinuousEngine(stand_in(DEVICE), config=config)
    params = SamplingParams(max_tokens=4, ignore_eos=True)

    def serve_some() -> int:
        engine.generate([prompt_of(length, 1) for length in LENGTHS], params)
        return torch.cuda.memory_allocated()

    serve_some()
    assert {serve_some() for _ in range(4)} == {serve_some()}


# ------------------------------------------------------------------ bfloat16


def test_bfloat16_is_as_near_to_fp32_as_transformers_own() -> None:
    exact, rough = Truth(stand_in(DEVICE)), Truth(stand_in(DEVICE, torch.bfloat16))
    config = EngineConfig(block_size=16, num_blocks=40, max_num_batched_tokens=48)
    observed = Observed(ContinuousEngine(rough.model, config=config))
    assert observed.engine.core.cache.k.dtype is torch.bfloat16
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    for length in LENGTHS:
        observed.engine.add_request(prompt_of(length, 7), params)
    observed.run()
    ours, theirs, rows = 0.0, 0.0, 0
    for name, output in observed.final.items():
        token_ids = [*output.prompt_token_ids, *output.token_ids]
        own, right = rough.logits(token_ids), exact.logits(token_ids)
        for position, found in observed.logits_of(name).items():
            for row in found:
                ours += float((row - right[position]).pow(2).sum())
                theirs += float((own[position] - right[position]).pow(2).sum())
                rows += 1
    assert rows >= 8 * len(LENGTHS)
    assert ours < 2 * theirs


# ------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in and its tokenizer, saved as a model folder."""
    path = tmp_path_factory.mktemp("stand_in")
    stand_in("cpu").save_pretrained(path)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(path)
    return path


def test_text_is_generated_from_a_folder(folder: Path) -> None:
    engine = ContinuousEngine.from_pretrained(str(folder), num_blocks=64)
    assert engine.core.runner.device.type == DEVICE  # where there is one, it is taken
    prompts = ["The sky is blue because", [{"role": "user", "content": "Hello"}]]
    outputs = engine.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
    assert [len(output.token_ids) for output in outputs] == [8, 8]


def test_the_benchmark_runs_and_says_where(folder: Path, tmp_path: Path) -> None:
    from paged_engine.cli import main

    written = tmp_path / "bench.json"
    argv = ["bench", "--model", str(folder), "--device", DEVICE, "--requests", "4", "--compare"]
    assert main([*argv, "naive", "--json", str(written)]) == 0
    text = written.read_text(encoding="utf-8")
    assert json.loads(text) and DEVICE in text
