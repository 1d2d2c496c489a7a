"""The run as a picture: batch size, blocks and tokens over time.

Drawn without a screen: to a file, of the kind that its ending names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paged_engine.benchmark.report import Timeline
from paged_engine.benchmark.results import Results

NUM_BINS = 60
INK = "#3b5b92"


def draw(results: Results, path: Path) -> None:
    """Write the figure of the run that `results.report` tells of."""
    timeline, settings = results.report.timeline, results.settings
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    batch, blocks, tokens = figure.subplots(3, 1, sharex=True)

    _staircase(batch, timeline, timeline.batch_size)
    batch.set_ylabel("requests in the batch")
    _staircase(blocks, timeline, timeline.block_use)
    blocks.set_ylabel("share of blocks used")
    edges, rates = token_rates(timeline)
    tokens.stairs(rates, edges, color=INK, fill=True, alpha=0.5)
    tokens.axhline(results.report.tokens_per_second, color="black", linewidth=0.8, linestyle="--")
    tokens.set_ylabel("output tokens a second")
    tokens.set_xlabel("seconds since the first request was due")

    for axes in (batch, blocks, tokens):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{settings.workload} on {settings.model}, {settings.dtype}; {settings.load}")
    figure.savefig(path, dpi=120)


def _staircase(axes: Any, timeline: Timeline, values: Sequence[float]) -> None:
    times, heights = staircase(timeline, values)
    axes.fill_between(times, heights, step="post", color=INK, alpha=0.25, linewidth=0)
    axes.step(times, heights, where="post", color=INK, linewidth=1)


def staircase(timeline: Timeline, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Times and heights of one value a step; 0 where the engine had nothing to do.

    Between two steps there is always a moment; only one that could be seen is shown.
    """
    visible = max(timeline.ended, default=0.0) / 500
    times: list[float] = []
    heights: list[float] = []
    for i, value in enumerate(values):
        times.append(timeline.began[i])
        heights.append(value)
        is_last = i + 1 == len(values)
        if is_last or timeline.began[i + 1] - timeline.ended[i] > visible:
            times.append(timeline.ended[i])
            heights.append(0.0)
    return times, heights


def token_rates(timeline: Timeline, num_bins: int = NUM_BINS) -> tuple[list[float], list[float]]:
    """Output tokens a second in equal stretches of the run.

    The tokens of a step are spread over its time: they all come at its end, and where steps are
    about as long as stretches the rate would flicker.

    Returns:
        The num_bins + 1 edges, in seconds, and the num_bins rates.
    """
    width = (max(timeline.ended, default=0.0) or 1.0) / num_bins
    counts = [0.0] * num_bins
    for began, ended, number in zip(
        timeline.began, timeline.ended, timeline.num_new_tokens, strict=True
    ):
        first, last = (min(int(time / width), num_bins - 1) for time in (began, ended))
        for i in range(first, last + 1):
            inside = min(ended, (i + 1) * width) - max(began, i * width)
            counts[i] += number * inside / (ended - began) if ended > began else number
    return [i * width for i in range(num_bins + 1)], [count / width for count in counts]
