"""The batch lanes as a plot: a lane a request, a stretch a step, and the tokens of each step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paged_engine import events as ev
from paged_engine.visualizer.draw_lanes import LanePanel
from paged_engine.visualizer.lanes import Lane, Run, read_run
from paged_engine.visualizer.palette import pattern_of
from paged_engine.visualizer.plots.looks import Look, Plot, Theme, clipped, shown
from paged_engine.visualizer.static import WIDTH, message

_WIDTH = 10.0
_MOST_ROOMY = 24  # lanes that are tall enough to hold words
_TALLEST = 14.0
_WELL = ("stop", "length")
_ENDS = {"well": "o", "abort": "s", "error": "^"}


def plot_lanes(
    log: Iterable[ev.Event],
    *,
    title: str | None = None,
    step: int | None = None,
    theme: Theme = "light",
    ax: Any = None,
) -> Any:
    """A lane for each request over the steps, and the tokens of each step below.

    Args:
        log: All events of an engine.
        title: The message; None: one is found in the run.
        step: A step to mark.
        theme: "light" or "dark", as the page around it.
        ax: Axes of yours to draw the lanes in, without the tokens; None: a new figure.

    Returns:
        The figure.

    Raises:
        PagedEngineError: The log is not whole.
        InvalidConfigError: There is no such theme.
    """
    look, run = Look(theme), read_run(log)
    tokens = None
    if ax is None:
        each = 0.27 if len(run.lanes) <= _MOST_ROOMY else 0.17
        tall = min(max(0.8, each * len(run.lanes)), _TALLEST)
        figure = Plot(_WIDTH, tall + 2.2)
        figure.set_facecolor(look.bg)
        ax, tokens = figure.subplots(2, sharex=True, height_ratios=[tall, 0.9])
        _draw_tokens(tokens, run, look)
    _draw_lanes(ax, run, look)
    lowest = ax if tokens is None else tokens
    lowest.set_xlabel("step")
    for axes in dict.fromkeys((ax, lowest)) if step is not None else ():
        axes.axvline(step, color=look.fg, linewidth=0.9, linestyle=(0, (3, 2)))
    look.title(ax, message(run) if title is None else title, _WIDTH)
    look.legend(lowest, _entries(run, look, tokens is not None), 5, below=0.5)
    figure = ax.get_figure(root=True)
    figure.pe_alt = f"{message(run)}. {LanePanel(run, WIDTH).text}".strip()
    return figure


def _draw_lanes(ax: Any, run: Run, look: Look) -> None:
    number = len(run.lanes)
    look.dress(ax)
    for row, lane in enumerate(run.lanes):
        _draw_lane(ax, lane, row, look, number <= _MOST_ROOMY)
    # room on the left for the tokens of a prompt
    steps = max(1, len(run.steps))
    ax.set(xlim=(-0.045 * steps, steps * 1.015), ylim=(max(1, number) - 0.4, -0.6))
    every = -(-number // 84)  # more names than that would overlap
    rows = range(0, number, max(1, every))
    wide = len(str(number - 1))
    names = [
        f"{shown(clipped(run.lanes[i].request_id))} {run.lanes[i].number:\u2007>{wide + 1}}"
        for i in rows
    ]
    ax.set_yticks(list(rows), names, fontsize=8 if number <= _MOST_ROOMY else 7)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks([s - 0.5 for s in _ticks(len(run.steps))], _ticks(len(run.steps)))
    ax.spines["left"].set_visible(False)


def _draw_lane(ax: Any, lane: Lane, row: int, look: Look, roomy: bool) -> None:
    colour, pattern = look.colour(lane.number), pattern_of(lane.number)
    for start, end in lane.waits:
        ax.plot([start, end], [row, row], color=look.hatch, linewidth=1, linestyle=":", zorder=1)
    for start, end in lane.decodes:
        ax.broken_barh([(start, end - start)], (row - 0.17, 0.34), facecolor=colour, zorder=2)
        if pattern:  # too thin for a hatch: a line is cut out of it
            cut = (0, (1.5, 1.5)) if pattern == 2 else "-"
            thin = {"color": look.bg, "linewidth": 1.1, "linestyle": cut}
            ax.plot([start, end], [row, row], solid_capstyle="butt", zorder=3, **thin)
    gap = 0.12
    boxes = [(step - 1 + gap / 2, 1 - gap) for step, _ in lane.chunks]
    ax.broken_barh(boxes, (row - 0.36, 0.72), zorder=2, **look.fill(lane.number))
    if roomy:
        for first, total in _runs_of_chunks(lane.chunks):
            at = {"textcoords": "offset points", "xytext": (-3, 0)}
            words = {"ha": "right", "va": "center", "fontsize": 7, "color": look.fg}
            around = {"boxstyle": "round,pad=0.1", "fc": look.bg, "lw": 0, "alpha": 0.8}
            ax.annotate(str(total), (first - 1, row), **at, **words, bbox=around, zorder=3)
    for step in lane.preempted:  # it is decided before the step computes anything
        _mark(ax, step - 0.5, row, "x", look.alarm, look.alarm, 6 if roomy else 5)
    if lane.injected:
        _mark(ax, lane.queued, row - 0.34, "v", look.fg, look.fg, 5)
    if lane.ended is not None:
        border, reason = lane.ended
        _mark(ax, border, row, _ENDS[_kind(reason)], look.bg, colour, 6 if roomy else 4.5)


def _mark(ax: Any, x: float, y: float, shape: str, inside: str, edge: str, size: float) -> None:
    ax.plot(
        [x],
        [y],
        shape,
        markersize=size,
        markerfacecolor=inside,
        markeredgecolor=edge,
        markeredgewidth=1.6,
        clip_on=False,
        zorder=5,
    )


def _draw_tokens(ax: Any, run: Run, look: Look) -> None:
    """What each step computed, prefill above decode, and what it could have."""
    look.dress(ax)
    at = [step.number - 0.5 for step in run.steps]
    decode = [step.num_decode_tokens for step in run.steps]
    prefill = [step.num_prefill_tokens for step in run.steps]
    wide = 0.88 if len(at) <= 200 else 1.0
    ax.bar(at, decode, wide, color=look.fg, linewidth=0)
    ax.bar(at, prefill, wide, bottom=decode, color=look.hatch, linewidth=0)
    for step in run.steps:
        if step.failed:
            ax.text(step.number - 0.5, 0, "!", ha="center", color=look.alarm, fontweight="bold")
    if budgets := [step.budget for step in run.steps]:
        edges = [step.number - 1 for step in run.steps] + [run.steps[-1].number]
        ax.stairs(budgets, edges, baseline=None, color=look.soft, linewidth=1, linestyle="--")
    ax.set_ylim(0, 1.08 * max([1, *budgets]))
    ax.set_ylabel("tokens a step")


def _entries(run: Run, look: Look, tokens: bool) -> list[tuple[Any, str]]:
    """The legend: only what is there."""
    lanes = run.lanes
    entries: list[tuple[Any, str]] = [
        (Patch(facecolor=look.colour(0)), "prefill, with its tokens"),
        (Line2D([], [], color=look.colour(0), linewidth=4, solid_capstyle="butt"), "decode"),
    ]
    if len(lanes) > _MOST_ROOMY:
        entries[0] = (entries[0][0], "prefill")
    if any(lane.waits for lane in lanes):
        entries.append((Line2D([], [], color=look.hatch, linewidth=1, linestyle=":"), "waiting"))
    if any(lane.injected for lane in lanes):
        entries.append((_sign("v", look.fg, look.fg), "injected"))
    if any(lane.preempted for lane in lanes):
        entries.append((_sign("x", look.alarm, look.alarm), "preempted"))
    kinds = {_kind(lane.ended[1]) for lane in lanes if lane.ended is not None}
    for kind, words in [("well", "finished"), ("abort", "aborted"), ("error", "ended by an error")]:
        if kind in kinds:
            entries.append((_sign(_ENDS[kind], look.bg, look.soft), words))
    if tokens:
        entries.append((Patch(facecolor=look.fg), "decode tokens"))
        entries.append((Patch(facecolor=look.hatch), "prefill tokens"))
        entries.append((Line2D([], [], color=look.soft, linewidth=1, linestyle="--"), "budget"))
    if any(step.failed for step in run.steps) and tokens:
        entries.append((_sign("$!$", look.alarm, look.alarm), "a step that failed"))
    return entries


def _sign(shape: str, inside: str, edge: str) -> Any:
    return Line2D(
        [],
        [],
        linestyle="",
        marker=shape,
        markersize=6,
        markerfacecolor=inside,
        markeredgecolor=edge,
        markeredgewidth=1.4,
    )


def _kind(reason: str) -> str:
    return "well" if reason in _WELL else "abort" if reason == "abort" else "error"


def _runs_of_chunks(chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first step and the tokens of each run of chunks in steps that follow each other."""
    runs = []
    for _, group in groupby(enumerate(chunks), key=lambda pair: pair[1][0] - pair[0]):
        members = [chunk for _, chunk in group]
        runs.append((members[0][0], sum(tokens for _, tokens in members)))
    return runs


def _ticks(number: int) -> list[int]:
    """The steps that are numbered: the first, and multiples of a round number."""
    nice = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    every = next(e for e in nice if number / e <= 20)
    return sorted({1, *range(every, number + 1, every)}) if number else []
