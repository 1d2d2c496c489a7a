"""`paged-engine trace`: serve prompts, and write what happened as an event log."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_engine.cli.arguments import (
    add_command,
    add_engine_arguments,
    add_sampling_arguments,
    sampling_params,
)
from paged_engine.cli.generate import add_prompts
from paged_engine.cli.loading import load_engine
from paged_engine.cli.prompts import add_prompt_arguments, read_prompts
from paged_engine.cli.terminal import CommandError, RequestBar, follow_events, note

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.events import EventLog
    from paged_engine.request import SamplingParams

# Of different lengths, so that they leave the batch at different steps.
PROMPTS = [
    "The capital of France is",
    "Three animals that live in the sea are",
    "Once upon a time, in a village by a river, there lived an old clockmaker who",
    "2 + 2 =",
]

Injection = tuple[int, str]


def add_to(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "trace",
        help="serve prompts and write an event log",
        description="Serve prompts in one batch, and write every change of the engine's state as "
        "a line of JSON. EventLog.from_jsonl reads the file, and paged_engine.replay rebuilds the "
        "state at any moment from it.",
        epilog="A small --num-blocks shows requests being preempted. Without a prompt a few are "
        "there already.",
    )
    parser.set_defaults(run=run)
    add_prompt_arguments(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where the log goes; - is stdout"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file if it is there")
    parser.add_argument(
        "--inject",
        action="append",
        default=[],
        type=_injection,
        metavar="STEP:PROMPT",
        help="a request that joins in that step, while others decode; may be given again",
    )
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Serve, write the log, and say in a line what is in it."""
    params = sampling_params(options)
    if options.output != "-":  # known before anything is computed
        _check_output(Path(options.output), options.force)
    prompts = read_prompts(options) or PROMPTS
    engine = load_engine(options, max_events=sys.maxsize)
    if options.verbose:
        follow_events(engine)
    with RequestBar(len(prompts) + len(options.inject), options) as bar:
        _serve(engine, prompts, options.inject, params, bar)
    _write(engine.log, options.output, options.force)
    note(_summary(engine, options.output))
    return 0


def _serve(
    engine: ContinuousEngine,
    prompts: list[str],
    injections: list[Injection],
    params: SamplingParams,
    bar: RequestBar,
) -> None:
    add_prompts(engine, prompts, params)
    line = sorted(injections, key=lambda injection: injection[0])
    step = 0  # the last one that was computed
    while line or engine.has_unfinished:
        while line and (line[0][0] <= step + 1 or not engine.has_unfinished):
            asked, prompt = line.pop(0)
            engine.add_request(prompt, params)
            if asked > step + 1:  # steps are counted only while there is work
                note(f"all had ended after step {step}, so --inject {asked} joins in {step + 1}")
        bar.update(engine.step())
        step += 1


def _injection(text: str) -> Injection:
    step, colon, prompt = text.partition(":")
    if not (step.isdecimal() and int(step) > 0 and colon and prompt):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not STEP:PROMPT, such as 5:Hello; steps are counted from 1"
        )
    return int(step), prompt


def _check_output(path: Path, force: bool) -> None:
    """Refuse what cannot be written, or should not be."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder; give the name of a file in it")
    if path.is_file() and not force:
        raise CommandError(f"{path} is there already; give another name, or --force")
    if not path.exists() and not path.parent.is_dir():
        raise CommandError(f"the folder {path.parent} is not there; make it, or give another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{path} cannot be written; give a name in a folder of yours")


def _write(log: EventLog, output: str, force: bool) -> None:
    if output == "-":
        log.to_jsonl(sys.stdout)
        sys.stdout.flush()
        return
    # A device or a pipe is there and is written to; a file that came meanwhile is not.
    is_new = not force and not Path(output).exists()
    with open(output, "x" if is_new else "w", encoding="utf-8") as file:
        log.to_jsonl(file)


def _summary(engine: ContinuousEngine, output: str) -> str:
    from paged_engine.metrics import run_metrics

    metrics = run_metrics(engine.log)
    num_blocks = engine.config.num_blocks or 0
    peak = round(max(metrics.block_use, default=0.0) * num_blocks)
    where = "stdout" if output == "-" else output
    return (
        f"{len(engine.log)} events written to {where}: {metrics.num_steps} steps, "
        f"{len(metrics.requests)} requests, {metrics.num_output_tokens} tokens, at most {peak} of "
        f"{num_blocks} blocks in use, {metrics.num_preemptions} preemptions"
    )
