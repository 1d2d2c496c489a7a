"""`bench --peers`: every engine that is installed, each in a process of its own."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from paged_engine.benchmark.processes.engines import OURS, PEERS, Engine
from paged_engine.benchmark.processes.outcome import Outcome
from paged_engine.benchmark.processes.rounds import compare
from paged_engine.benchmark.processes.worker_process import WorkerProcess
from paged_engine.benchmark.processes.workers.protocol import Limits
from paged_engine.benchmark.workloads import Job, check_fits
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError

HERE = Path(__file__).resolve().parent
LARGEST_BLOCK = 128  # of the engines; what is rounded up to it fits them all
OURS_TO_IMPORT = ("paged_engine", "transformers")  # their workers may use the package


def run(
    options: argparse.Namespace,
    config: EngineConfig,
    names: Sequence[str],
    make_jobs: Callable[[int], list[Job]],
    say: Callable[[str], object],
) -> int:
    """Compare, and print the table.

    Args:
        options: Of the command, checked.
        config: The engine's limits that were asked for.
        names: Those of `PEERS` to compare with.
        make_jobs: Makes the jobs for a vocabulary of this size.
        say: Told what goes on.

    Returns:
        The exit code: 0, or 1 where paged_engine itself could not run.
    """
    import torch
    from transformers import AutoConfig

    from paged_engine.benchmark.machine import this_machine
    from paged_engine.models.default_model import cache_folder, resolve_model

    torch.set_num_threads(threads := options.threads or len(os.sched_getaffinity(0)))
    machine = this_machine(torch.device("cpu"))
    folder = Path(resolve_model(options.model))
    if not folder.is_dir():
        raise InvalidConfigError(
            f"--model is {options.model}; with --peers expected a model folder, which every "
            f"engine can read"
        )
    model = AutoConfig.from_pretrained(folder).get_text_config()
    jobs = make_jobs(model.vocab_size)
    limits = _limits(config, jobs, threads)
    check_fits(jobs, min(limits.max_model_len, limits.num_kv_tokens, model.max_position_embeddings))
    cache = cache_folder() / "peers" / _fingerprint(folder)
    cache.mkdir(parents=True, exist_ok=True)
    engines = [_with_static_batch(PEERS[name], options.static_batch) for name in names]
    pythons = {name: path for name, _, path in (p.partition("=") for p in options.peer_python)}
    measured = compare(
        [*engines, OURS],
        lambda engine: start(engine, pythons, threads, options.peer_limit),
        jobs,
        replace(limits, model=str(folder.resolve()), cache=str(cache), dtype=options.dtype),
        options.rounds,
        say=say,
    )
    outcome = Outcome(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=folder.resolve().name,
        workload=options.workload,
        seed=options.seed,
        max_tokens=options.max_tokens,
        num_rounds=options.rounds,
        machine=machine,
        limits=replace(limits, dtype=options.dtype),
        measured=tuple(measured),
    )
    print(outcome.table())
    if options.json is not None:
        outcome.write(options.json)
    return 1 if measured[-1].failure is not None else 0


def start(engine: Engine, pythons: Mapping[str, str], threads: int, limit: float) -> WorkerProcess:
    """The worker of an engine, under the interpreter that was given for it, or else ours."""
    python = pythons.get(engine.family, sys.executable)
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the model is there; what asks all the same waits for nothing
        "DO_NOT_TRACK": "1",
    }
    variables.pop("PYTHONPATH", None)
    if engine.family in OURS_TO_IMPORT:
        variables["PYTHONPATH"] = str(HERE.parents[2])
    command = [python, "-m", f"workers.{engine.worker}"]
    return WorkerProcess(command, folder=HERE, environment=variables, limit=limit)


def _limits(config: EngineConfig, jobs: Sequence[Job], threads: int) -> Limits:
    """With a KV cache for a full batch of the longest request, unless told otherwise."""
    longest = max(job.num_tokens for job in jobs)
    max_model_len = config.max_model_len or -(-longest // LARGEST_BLOCK) * LARGEST_BLOCK
    num_kv_tokens = max_model_len * config.max_num_seqs
    if config.num_blocks is not None:
        num_kv_tokens = config.num_blocks * config.block_size
    return Limits(
        model="",
        cache="",
        dtype="",
        threads=threads,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        num_kv_tokens=num_kv_tokens,
    )


def _with_static_batch(engine: Engine, size: int | None) -> Engine:
    return replace(engine, mode=f"static:{size}") if engine.mode == "static" and size else engine


def _fingerprint(folder: Path) -> str:
    """A name for what is converted from this model, as it is now."""
    text = str(folder.resolve())
    for path in sorted(folder.iterdir()):
        status = path.stat()
        text += f"\n{path.name} {status.st_size} {status.st_mtime_ns}"
    return f"{folder.resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
