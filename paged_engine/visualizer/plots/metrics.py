"""How well a run went, as a plot: throughput, batch and blocks over time, and latencies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from paged_engine import events as ev
from paged_engine.metrics import RunMetrics, StepMetrics, percentile, run_metrics
from paged_engine.visualizer.lanes import whole
from paged_engine.visualizer.plots.looks import Look, Plot, Theme

_WIDTH = 11.0
_STRETCHES = 50  # of the run, for rates
_MOST_BARS = 30
_MOST_TICKED = 200  # values that are also marked one by one


def plot_metrics(
    log: Iterable[ev.Event],
    *,
    title: str | None = None,
    theme: Theme = "light",
    figure: Any = None,
) -> Any:
    """Tokens a second, batch size, block use and fragmentation over time; TTFT and ITL.

    What they mean is told in :mod:`paged_engine.metrics`, which computes them.

    Args:
        log: All events of an engine.
        title: The message; None: throughput and median latencies.
        theme: "light" or "dark", as the page around it.
        figure: A figure or subfigure of yours to draw in; None: a new one.

    Returns:
        The figure.

    Raises:
        PagedEngineError: The log is not whole.
        InvalidConfigError: There is no such theme.
    """
    look, run = Look(theme), run_metrics(whole(log))
    if figure is None:
        figure = Plot(_WIDTH, 6.2)
    figure.set_facecolor(look.bg)
    (rate, batch, ttft), (use, fragmentation, itl) = figure.subplots(2, 3)
    start = run.steps[0].began if run.steps else 0.0
    end = run.steps[-1].ended - start if run.steps else 1.0
    panels = [
        _rates(rate, run, look, start, end),
        _over_time(batch, run.batch_sizes, run, look, start, "requests", "Batch size"),
        _latencies(ttft, [r.ttft for r in run.requests if r.ttft is not None], look, "TTFT"),
        _over_time(use, run.block_use, run, look, start, "% of the blocks", "Blocks used"),
        _over_time(
            fragmentation,
            run.fragmentation,
            run,
            look,
            start,
            "% of the slots in used blocks",
            "Fragmentation",
        ),
        _latencies(itl, [gap for r in run.requests for gap in r.itl], look, "ITL"),
    ]
    for axes in (rate, batch, use, fragmentation):
        axes.set(xlim=(0, end), xlabel="seconds since the first step")
        axes.set_ylim(bottom=0)
    summary = _summary(run)
    words = summary if title is None else title
    figure.suptitle(words, x=0.01, ha="left", color=look.fg, fontsize=12, fontweight="bold")
    figure.pe_alt = f"{summary}. {'. '.join(panels)}."
    return figure


def _summary(run: RunMetrics) -> str:
    ttft, itl = run.percentile("ttft", 50), run.percentile("itl", 50)
    words = [f"{len(run.requests)} request{'s' * (len(run.requests) != 1)}"]
    words.append(f"{run.output_throughput:.1f} output tokens/s")
    words += [f"first token after {_time(ttft)}"] if ttft is not None else []
    words += [f"then one every {_time(itl)} (medians)"] if itl is not None else []
    return ", ".join(words)


# Over time ---------------------------------------------------------------------------------------


def _rates(ax: Any, run: RunMetrics, look: Look, start: float, end: float) -> str:
    look.dress(ax)
    edges, rates = token_rates(run.steps, start, end)
    ax.stairs(rates, edges, fill=True, color=look.colour(0), alpha=0.35)
    ax.stairs(rates, edges, color=look.colour(0), linewidth=1.3)
    mean = run.output_throughput
    line = ax.axhline(mean, color=look.fg, linewidth=1, linestyle="--")
    ax.set_ylabel("output tokens a second")
    ax.legend([line], ["over the run"], fontsize=8, frameon=False, labelcolor=look.fg)
    words = f"{mean:.1f} tokens/s, {max(rates):.1f} at most"
    return _titled(ax, look, "Throughput", words)


def token_rates(
    steps: Sequence[StepMetrics], start: float, end: float, number: int = _STRETCHES
) -> tuple[list[float], list[float]]:
    """Output tokens a second in equal stretches of the run.

    The tokens of a step are spread over its time: they all come at its end, and where a step is
    about as long as a stretch the rate would flicker.

    Args:
        steps: Those of a run.
        start: When the first of them began.
        end: When the last of them ended, since then.
        number: Of stretches; there are no more than steps.

    Returns:
        The edges in seconds since `start`, one more than rates, and the rates.
    """
    number = max(1, min(number, len(steps)))
    width = (end or 1.0) / number
    counts = [0.0] * number
    for step in steps:
        began, ended = step.began - start, step.ended - start
        first, last = (min(int(time / width), number - 1) for time in (began, ended))
        for i in range(first, last + 1):
            inside = min(ended, (i + 1) * width) - max(began, i * width)
            share = inside / (ended - began) if ended > began else 1.0
            counts[i] += step.num_new_tokens * share
    return [i * width for i in range(number + 1)], [count / width for count in counts]


def _over_time(
    ax: Any,
    values: Sequence[float],
    run: RunMetrics,
    look: Look,
    start: float,
    unit: str,
    title: str,
) -> str:
    """A staircase of one value a step; 0 where the engine had nothing to do."""
    look.dress(ax)
    scale = 100.0 if unit.startswith("%") else 1.0
    times, heights = _staircase(run.steps, [scale * value for value in values], start)
    ax.fill_between(times, heights, step="post", color=look.colour(0), alpha=0.35, linewidth=0)
    ax.step(times, heights, where="post", color=look.colour(0), linewidth=1.3)
    ax.set_ylabel(unit)
    peak = scale * max(values, default=0.0)
    mean = scale * sum(values) / max(1, len(values))
    sign = "%" if scale > 1 else ""
    ax.yaxis.get_major_locator().set_params(integer=scale == 1)
    words = f"{mean:.1f}{sign} on average, {peak:.1f}{sign} at most"
    return _titled(ax, look, title, words.replace(".0 at", " at"))


def _staircase(
    steps: Sequence[StepMetrics], values: Sequence[float], start: float
) -> tuple[list[float], list[float]]:
    """Between two steps there is always a moment; only one that could be seen is shown."""
    visible = (steps[-1].ended - start) / 500 if steps else 0.0
    times: list[float] = []
    heights: list[float] = []
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        times.append(step.began - start)
        heights.append(value)
        if i + 1 == len(steps) or steps[i + 1].began - step.ended > visible:
            times.append(step.ended - start)
            heights.append(0.0)
    return times, heights


# Distributions -----------------------------------------------------------------------------------


def _latencies(ax: Any, values: Sequence[float], look: Look, name: str) -> str:
    """How often each latency came, with the median and the slowest hundredth."""
    look.dress(ax)
    full = {"TTFT": "Time to first token", "ITL": "Inter-token latency"}[name]
    ax.set_ylabel("requests" if name == "TTFT" else "tokens")
    if not values:
        ax.set_xlabel(f"{name}, seconds")
        return _titled(ax, look, full, "none yet")
    scale, unit = (1.0, "seconds") if max(values) >= 1 else (1000.0, "milliseconds")
    times = [scale * value for value in values]
    high = max(times) * 1.05 or 1.0
    bars = min(_MOST_BARS, max(8, round(2 * len(times) ** 0.5)))
    ax.hist(
        times,
        bins=bars,
        range=(0, high),
        facecolor=look.colour(0),
        edgecolor=look.bg,
        linewidth=0.8,
    )
    if len(times) <= _MOST_TICKED:
        at = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(times, [0.02] * len(times), "|", color=look.fg, markersize=7, **at)
    half, most = percentile(values, 50), percentile(values, 99)
    assert half is not None and most is not None
    ax.axvline(scale * half, color=look.fg, linewidth=1.2, linestyle="--", label="p50")
    ax.axvline(scale * most, color=look.alarm, linewidth=1.2, linestyle=":", label="p99")
    ax.legend(fontsize=8, frameon=False, labelcolor=look.fg, loc="best")
    ax.set(xlim=(0, high), xlabel=f"{name}, {unit}")
    ax.yaxis.get_major_locator().set_params(integer=True)
    return _titled(ax, look, full, f"{_time(half)} p50, {_time(most)} p99")


def _titled(ax: Any, look: Look, name: str, words: str) -> str:
    """What is shown, and below it what it says."""
    look.title(ax, f"{name}\n{words}", _WIDTH / 3, 9.5)
    return f"{name}: {words}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
