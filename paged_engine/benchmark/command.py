"""The benchmark's command: `add_arguments` for a parser, `run` for what it parsed.

Nothing here needs torch before `run` has found the options in order.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_engine.benchmark.options import TINY, add_arguments, checked_peers, engine_config
from paged_engine.benchmark.workloads import (
    UNIFORM_OUTPUTS,
    UNIFORM_PROMPTS,
    Job,
    check_fits,
    make_jobs,
)
from paged_engine.config import EngineConfig

if TYPE_CHECKING:
    import torch

    from paged_engine.benchmark.load import Load
    from paged_engine.benchmark.results import Results

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> int:
    """Run the benchmark and print its table.

    Returns:
        The exit code: 0, or 1 where engines were to be compared side by side and ours failed.

    Raises:
        InvalidConfigError: The options do not go together; nothing was loaded.
        PagedEngineError: The model cannot be had, or cannot be served.
    """
    config = engine_config(options)  # all that can be wrong is found before minutes are spent
    peers = checked_peers(options)
    if options.peers is not None:
        from paged_engine.benchmark.processes import command

        say = _silent if options.no_progress else _say
        return command.run(options, config, peers, partial(_jobs, options), say)
    if options.scaling is not None:
        from paged_engine.benchmark import scaling

        say = _silent if options.no_progress else _say
        return scaling.run(options, config, _load_model, say)
    results = _measure(options, config, peers)
    print(results.table())
    if options.json is not None:
        results.write(options.json)
    if options.figure is not None:
        from paged_engine.benchmark.figure import draw

        draw(results, options.figure)
    return 0


def _measure(options: argparse.Namespace, config: EngineConfig, peers: list[str]) -> Results:
    """Load the model, serve the workload as often as asked, and sum it up."""
    import torch

    from paged_engine.benchmark.comparison import compare
    from paged_engine.benchmark.machine import this_machine
    from paged_engine.benchmark.measurement import EngineUnderTest
    from paged_engine.benchmark.peers import PEERS
    from paged_engine.benchmark.report import Targets
    from paged_engine.benchmark.results import Results, Settings
    from paged_engine.models.devices import choose_device

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(None if options.device == "auto" else options.device)
    machine = this_machine(device)  # first, so that its load average is that of others
    model, tokenizer, name = _load_model(options, device)
    jobs = _jobs(options, model.config.get_text_config().vocab_size)
    ours = EngineUnderTest(model, tokenizer, config, partial(_load, options))
    limits = ours.config
    assert limits.max_servable_tokens is not None and limits.num_blocks is not None
    check_fits(jobs, limits.max_servable_tokens)
    settings = Settings(
        model=name,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        workload=options.workload,
        seed=options.seed,
        max_tokens=options.max_tokens,
        load=_load_in_words(options),
        rate=options.rate,
        clients=options.clients,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        prefix_caching=limits.enable_prefix_caching,
        num_rounds=options.rounds,
    )
    static_batch = options.static_batch or limits.max_num_seqs
    say = _silent if options.no_progress else _say
    say(f"warming up {ours.name}")
    ours.warm_up(jobs)
    others = [PEERS[peer](model, limits, static_batch) for peer in peers]
    standings = compare(others, ours, jobs, options.rounds, model, say=say)

    targets = Targets(options.ttft, options.tpot)
    reports = [taken.report(targets) for taken in ours.runs]
    by_speed = sorted(range(len(reports)), key=lambda i: reports[i].total_time)
    middle = by_speed[len(by_speed) // 2]  # of two in the middle the slower one
    return Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        machine=machine,
        round=middle + 1,
        report=reports[middle],
        standings=tuple(standings),
    )


def _load_model(options: argparse.Namespace, device: torch.device) -> tuple[Any, Any, str]:
    """Model, tokenizer or None, and the model's name without the folders it lies in."""
    from paged_engine.models.default_model import DEFAULT_MODEL_NAME, load_model_and_tokenizer
    from paged_engine.models.devices import choose_dtype
    from paged_engine.models.tiny_models import tiny

    dtype = choose_dtype(options.dtype, device)
    if options.model == TINY:
        model: Any = tiny(max_position_embeddings=4096)  # so that every workload fits
        return model.to(device, dtype), None, "a tiny random llama"
    if not options.no_progress:
        _say("loading the model")
    model, tokenizer = load_model_and_tokenizer(options.model, dtype=dtype, device=device)
    name = options.model or os.environ.get("PAGED_ENGINE_MODEL") or DEFAULT_MODEL_NAME
    folder = Path(name).expanduser()
    return model, tokenizer, folder.resolve().name if folder.is_dir() else name


def _jobs(options: argparse.Namespace, vocab_size: int) -> list[Job]:
    prompts, outputs = options.prompt_lengths, options.output_lengths
    return make_jobs(
        options.workload,
        vocab_size,
        num_requests=options.requests,
        seed=options.seed,
        max_tokens=options.max_tokens,
        prompt_lengths=UNIFORM_PROMPTS if prompts is None else (prompts[0], prompts[1]),
        output_lengths=UNIFORM_OUTPUTS if outputs is None else (outputs[0], outputs[1]),
    )


def _load(options: argparse.Namespace, num_jobs: int) -> Load:
    from paged_engine.benchmark.load import ClosedLoop, at_once, poisson

    if options.rate is not None:
        return poisson(num_jobs, options.rate, options.seed)
    if options.clients is not None:
        return ClosedLoop(options.clients)
    return at_once(num_jobs)


def _load_in_words(options: argparse.Namespace) -> str:
    if options.rate is not None:
        return f"open loop, {options.rate:g} requests a second at random"
    if options.clients is not None:
        return f"closed loop, clients: {options.clients}"
    return "all requests at once"


def _silent(text: str) -> None:
    """In the place of `_say`."""


def _say(text: str) -> None:
    print(f"[bench] {text}", file=sys.stderr, flush=True)
