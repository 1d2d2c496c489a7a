"""`bench --scaling`: how speed goes with batch, context, block size and the length of the line.

Rounds alternate over all points, every second one from the end to the beginning, so that whatever
else the machine does meets all alike.  What the machine can do at best is measured between them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import torch

from paged_engine.benchmark.machine import this_machine
from paged_engine.benchmark.scaling_plan import Plan, make_plan
from paged_engine.benchmark.scaling_results import Scaling, WaitingPoint, point_of
from paged_engine.benchmark.scaling_roof import Range, RoofUnderTest, cost_of
from paged_engine.benchmark.scaling_steps import points
from paged_engine.benchmark.scaling_waiting import Line
from paged_engine.config import EngineConfig
from paged_engine.kv_cache import free_memory
from paged_engine.models.choice import choose_runner
from paged_engine.models.devices import choose_device

Say = Callable[[str], object]
T = TypeVar("T")
MACHINE = "the machine alone"


def run(
    options: argparse.Namespace,
    config: EngineConfig,
    load: Callable[[argparse.Namespace, torch.device], tuple[Any, Any, str]],
    say: Say,
) -> int:
    """Measure, print the table, and write what was asked for.

    Args:
        options: Of the command, checked.
        config: The engine's limits that were asked for.
        load: Gives the model, its tokenizer and its name.
        say: Told what goes on.

    Returns:
        The exit code.

    Raises:
        PagedEngineError: The model cannot be had, or cannot be served.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(None if options.device == "auto" else options.device)
    machine = this_machine(device)  # first, so that its load average is that of others
    plan = make_plan(options, config, None)  # what is wrong is found before a model is loaded
    known: dict[str, Any] = {}
    if plan.needs_model:
        model, _, name = load(options, device)
        known = {"model": name, **_measure_steps(options, config, model, say)}
        plan = known.pop("plan")
    found = Scaling(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        num_rounds=options.rounds,
        plan=plan,
        block_size=config.block_size,
        budget=config.max_num_batched_tokens,
        waiting=_measure_waiting(plan, options.rounds, say),
        **known,
    )
    print(found.table())
    if options.json is not None:
        found.write(options.json)
    if options.figures is not None:
        from paged_engine.benchmark.scaling_figures import draw

        draw(found, options.figures)
    return 0


def in_turns(
    things: Sequence[tuple[str, Callable[[], T]]], num_rounds: int, say: Say
) -> list[list[T]]:
    """What each of the named things gave in each round, in their order."""
    found: list[list[T]] = [[] for _ in things]
    for number in range(1, num_rounds + 1):
        order = list(enumerate(things))
        for place, (name, measure) in order if number % 2 else reversed(order):
            say(f"round {number} of {num_rounds}, {name}")
            found[place].append(measure())
    return found


def _measure_steps(
    options: argparse.Namespace, config: EngineConfig, model: Any, say: Say
) -> dict[str, Any]:
    """The series of the engine, as fields of `Scaling`."""
    runner = choose_runner(model, None, config.block_size, check=config.probe)
    cost = cost_of(model, runner.kv_shape, runner.dtype)
    plan = make_plan(options, config, runner.max_model_len)
    plan = plan.within(free_memory(runner.device) // cost.kv_bytes)
    say("computing the prompts, and warming up")
    under_roof = RoofUnderTest(runner.dtype, runner.device)
    series = list(points(plan, runner, config, options.rounds))
    things: list[tuple[str, Callable[[], Any]]] = []
    for place, (name, value, measure) in enumerate(series):
        if place == 0 or name != series[place - 1][0]:
            things.append((MACHINE, under_roof.measure))
        things.append((f"{name} {value}", measure))
    found = in_turns(things, options.rounds, say)
    samples = [rounds for (name, _), rounds in zip(things, found, strict=True) if name != MACHINE]
    roof = under_roof.roof()
    return {
        "plan": plan,
        "dtype": str(runner.dtype).removeprefix("torch."),
        "device": str(runner.device),
        "roof": roof,
        "cost": cost,
        "points": tuple(
            point_of(name, value, rounds, roof, cost)
            for (name, value, _), rounds in zip(series, samples, strict=True)
        ),
    }


def _measure_waiting(plan: Plan, num_rounds: int, say: Say) -> tuple[WaitingPoint, ...]:
    if not plan.waiting:
        return ()
    say("putting requests in line")
    lines = [(f"waiting {number}", Line(number).measure) for number in plan.waiting]
    found = in_turns(lines, num_rounds, say)
    return tuple(
        WaitingPoint(number, Range.of(seconds))
        for number, seconds in zip(plan.waiting, found, strict=True)
    )
