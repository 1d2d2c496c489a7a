"""The engine beside transformers' `generate`, one prompt after the other, in one run.

    python -m paged_engine.benchmark.against_naive --rounds 3

Rounds alternate, so that whatever else the machine does meets both alike.  The tokens are
compared too: a speed with other tokens is no speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from paged_engine.benchmark.workloads import Job, mixed_lengths
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.models.default_model import load_model_and_tokenizer
from paged_engine.models.devices import choose_device, choose_dtype

Tokens = list[tuple[int, ...]]


def naive(model: PreTrainedModel, jobs: Sequence[Job]) -> Tokens:
    """transformers' own `generate`, prompt by prompt, to the full length.

    The end-of-sequence token is taken from it meanwhile: `min_new_tokens` would forbid that
    token, where the engine's `ignore_eos` only goes on after it.
    """
    outputs = []
    settings: Any = model.generation_config
    eos_token_id, settings.eos_token_id = settings.eos_token_id, None
    try:
        for job in jobs:
            prompt = torch.tensor([job.prompt_token_ids], device=model.device)
            sequences = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=job.num_output_tokens,
                do_sample=False,
            )
            outputs.append(tuple(sequences[0, prompt.shape[1] :].tolist()))
    finally:
        settings.eos_token_id = eos_token_id
    return outputs


def continuous(engine: ContinuousEngine, jobs: Sequence[Job]) -> Tokens:
    """All prompts at once, in the engine."""
    prompts = [job.prompt_token_ids for job in jobs]
    return [o.token_ids for o in engine.generate(prompts, [job.params for job in jobs])]


@torch.inference_mode()
def margin_where_they_part(
    model: PreTrainedModel, job: Job, ours: Sequence[int], theirs: Sequence[int]
) -> float:
    """How far apart the model's two best candidates are where two outputs first differ.

    Below 1e-4 fp32 rounding decides, and either token is right.
    """
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    known = torch.tensor([[*job.prompt_token_ids, *theirs[:place]]], device=model.device)
    best = model(known, use_cache=False).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


def _timed(run: Callable[[], Tokens]) -> tuple[float, Tokens]:
    began = time.perf_counter()
    outputs = run()
    return time.perf_counter() - began, outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; default: the default model")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=32, help="max_num_seqs")
    options = parser.parse_args(argv)

    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    model, tokenizer = load_model_and_tokenizer(options.model, dtype=dtype, device=device)
    jobs = mixed_lengths(model.config.vocab_size, options.requests)
    config = EngineConfig(max_num_seqs=options.concurrency, enable_prefix_caching=False)
    engine = ContinuousEngine(model, tokenizer, config)
    num_tokens = sum(job.num_output_tokens for job in jobs)
    num_prompt_tokens = sum(len(job.prompt_token_ids) for job in jobs)
    print(
        f"{len(jobs)} requests, {num_prompt_tokens} prompt and {num_tokens} output tokens, "
        f"{dtype}, {device}, {torch.get_num_threads()} threads"
    )
    continuous(engine, jobs[:2])  # what is only done once is not what is measured
    naive(model, jobs[:1])
    rates: dict[str, list[float]] = {"naive": [], "paged_engine": []}
    for number in range(1, options.rounds + 1):
        naive_seconds, expected = _timed(lambda: naive(model, jobs))
        seconds, outputs = _timed(lambda: continuous(engine, jobs))
        rates["naive"].append(num_tokens / naive_seconds)
        rates["paged_engine"].append(num_tokens / seconds)
        same = sum(a == b for a, b in zip(outputs, expected, strict=True))
        print(
            f"round {number}: naive {rates['naive'][-1]:.1f} tok/s, paged_engine "
            f"{rates['paged_engine'][-1]:.1f} tok/s, {same} of {len(jobs)} outputs identical"
        )
        for number_of_job, (job, ours, theirs) in enumerate(
            zip(jobs, outputs, expected, strict=True)
        ):
            if ours != theirs:
                margin = margin_where_they_part(model, job, ours, theirs)
                print(f"  request {number_of_job} parts where the top-2 margin is {margin:.2g}")
    before, after = (statistics.median(rates[name]) for name in ("naive", "paged_engine"))
    print(f"median: naive {before:.1f}, paged_engine {after:.1f} tok/s, ratio {after / before:.2f}")


if __name__ == "__main__":
    main()
