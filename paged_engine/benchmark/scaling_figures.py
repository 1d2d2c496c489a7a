"""The figures of `bench --scaling`: what was measured, and under it what could not be beaten.

Each is written as an SVG that follows the reader's light or dark paper, and as a PNG on a ground of
its own.  Titles are made from the numbers, so that none of them can say what was not measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ticker import FuncFormatter, NullLocator

from paged_engine.benchmark.scaling_results import Point, Scaling
from paged_engine.benchmark.scaling_roof import Range
from paged_engine.visualizer.palette import colours, paper
from paged_engine.visualizer.plots.looks import Look, Plot

BLUE, ORANGE, GREEN = 0, 1, 2  # one colour and one mark a series, the same in every figure
MARKS = {BLUE: "o", ORANGE: "s", GREEN: "^"}
WIDTH, HEIGHT = 8.0, 3.6
_SETTINGS = {"svg.hashsalt": "paged_engine", "svg.fonttype": "none"}


def draw(found: Scaling, folder: Path) -> list[Path]:
    """Write a figure of each series that was measured, and of the roof; returns the files."""
    series: list[tuple[str, bool, Callable[[Scaling, Look], Plot]]] = [
        ("batch", bool(found.of("batch")), plot_batches),
        ("context", bool(found.of("context")), plot_contexts),
        ("block_size", bool(found.of("block-size")), plot_block_sizes),
        ("waiting", bool(found.waiting), plot_waiting),
        ("roofline", bool(found.points), plot_roof),
    ]
    written = []
    for name, is_there, plot in series:
        if is_there:
            figure = plot(found, Look("light"))
            picture, drawing = folder / f"scaling_{name}.png", folder / f"scaling_{name}.svg"
            figure.savefig(picture, dpi=120, facecolor=figure.get_facecolor())
            drawing.write_text(_adaptive(figure), encoding="utf-8")
            written += [picture, drawing]
    return written


def plot_batches(found: Scaling, look: Look) -> Plot:
    """Tokens a second against the size of the batch."""
    points = found.of("batch")
    first, last = points[0], points[-1]
    gain = last.rate.median / first.rate.median
    title = f"{last.value} requests together get {gain:.1f} x the tokens a second of one"
    if last is first:
        title = f"One request alone gets {first.rate.median:.0f} tokens a second"
    figure, axes = _figure(look, title, found)
    _rates(axes, look, points, BLUE)
    axes.set_xlabel(f"requests decoding, with {found.plan.batch_context} tokens of context each")
    axes.set_ylabel("output tokens a second")
    _doubling(axes, points)
    _legend(axes, look)
    return figure


def plot_contexts(found: Scaling, look: Look) -> Plot:
    """Tokens a second against the length of the context: of decoding, and of a prompt."""
    decoding, prompts = found.of("context"), found.of("prefill")
    first, last = decoding[0], decoding[-1]
    longer = last.seconds.median / first.seconds.median
    title = (
        f"With {last.value:,} tokens of context a decode step takes {longer:.1f} x as long as with "
        f"{first.value:,}"
    )
    figure, (left, right) = _figure(look, title, found, columns=2)
    _rates(left, look, decoding, BLUE)
    left.set_xlabel(f"tokens of context, of each of {found.plan.context_batch} requests")
    left.set_ylabel("output tokens a second")
    _rates(right, look, prompts, ORANGE)
    right.set_xlabel("tokens of one prompt alone")
    right.set_ylabel("prompt tokens a second")
    for axes, points in ((left, decoding), (right, prompts)):
        _doubling(axes, points)
        _legend(axes, look)
    return figure


def plot_block_sizes(found: Scaling, look: Look) -> Plot:
    """Tokens a second against the size of a block."""
    points = found.of("block-size")
    best = max(points, key=lambda p: p.rate.median)
    worst = min(points, key=lambda p: p.rate.median)
    less = 1 - worst.rate.median / best.rate.median
    title = (
        f"Blocks of {best.value} tokens are the fastest; the slowest, of {worst.value}, give "
        f"{less:.0%} less"
    )
    figure, axes = _figure(look, title, found)
    _rates(axes, look, points, GREEN)
    batch, context = found.plan.block_batch, found.plan.batch_context
    axes.set_xlabel(f"tokens a block, with {batch} requests of {context} tokens of context")
    axes.set_ylabel("output tokens a second")
    _doubling(axes, points)
    _legend(axes, look)
    return figure


def plot_waiting(found: Scaling, look: Look) -> Plot:
    """Microseconds of a scheduler's step against the length of the line."""
    points = found.waiting
    first, last = points[0], points[-1]
    title = (
        f"With {last.num_waiting:,} requests waiting a step of the scheduler takes "
        f"{1e6 * last.seconds.median:.0f} µs; with {first.num_waiting:,}, "
        f"{1e6 * first.seconds.median:.0f} µs"
    )
    figure, axes = _figure(look, title, found, subject="the scheduler alone")
    places = list(range(len(points)))  # 0 has no place on a logarithmic axis
    _marked(axes, look, places, [_scaled(p.seconds, 1e6) for p in points], BLUE, "measured")
    axes.set_xticks(places, [f"{p.num_waiting:,}" for p in points])
    axes.set_xlabel("requests waiting")
    axes.set_ylabel("µs a step")
    axes.set_ylim(0, 1.25e6 * max(p.seconds.highest for p in points))
    return figure


def plot_roof(found: Scaling, look: Look) -> Plot:
    """Operations a second against operations a byte, under the machine's roof."""
    assert found.roof is not None
    band, gemm = found.roof.bandwidth.highest, found.roof.gemm.highest
    best = max(p.share for p in found.points if p.series != "prefill")
    title = f"At best a decode step reaches {best:.0%} of what this machine can do"
    if found.of("prefill"):
        title += f", and a prompt {max(p.share for p in found.of('prefill')):.0%}"
    figure, axes = _figure(look, title, found)
    kinds = [("batch", BLUE, "decoding"), ("context", GREEN, "decoding, longer contexts")]
    kinds += [("prefill", ORANGE, "a prompt alone")]
    if not any(found.of(name) for name, _, _ in kinds):
        kinds = [("block-size", GREEN, "decoding, block sizes")]
    shown = [point for name, _, _ in kinds for point in found.of(name)]
    intensities = [p.num_flops / p.num_bytes for p in shown]
    ridge = gemm / band  # where memory and arithmetic take equally long
    xs = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
    roof = [min(x * band, gemm) / 1e9 for x in xs]
    axes.plot(xs, roof, color=look.fg, linewidth=1.2, label="the roof")
    axes.annotate(
        f"{band / 1e9:.1f} GB/s, {gemm / 1e9:,.0f} GFLOP/s",
        (ridge, gemm / 1e9),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=look.fg,
    )
    for name, colour, label in kinds:
        points = found.of(name)
        if points:
            values = [_scaled(Range(*_flops(point)), 1e-9) for point in points]
            where = [p.num_flops / p.num_bytes for p in points]
            _marked(axes, look, where, values, colour, label, line="none")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="minor", colors=look.soft, labelcolor=look.fg)
    axes.set_xlabel("operations a byte of memory, at least (FLOP/byte)")
    axes.set_ylabel(f"GFLOP/s, {found.dtype}")
    axes.margins(y=0.12)
    _legend(axes, look)
    return figure


def _figure(
    look: Look, title: str, found: Scaling, columns: int = 1, subject: str | None = None
) -> tuple[Plot, Any]:
    """A figure with its title, under it on what it was measured, and its axes."""
    figure = Plot(WIDTH, HEIGHT)
    figure.set_facecolor(look.bg)
    all_axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in all_axes:
        look.dress(axes)
    figure.suptitle(
        title, x=0.01, ha="left", color=look.fg, fontsize=11, fontweight="bold", wrap=True
    )
    what = subject or f"{found.model}, {found.dtype}"
    machine = found.machine
    where = machine.gpu or f"{machine.cpu}, {machine.threads} threads"
    note = f"{what}; {where}; torch {machine.torch}; median of {found.num_rounds}, with the spread"
    figure.supxlabel(note, x=0.99, ha="right", color=look.soft, fontsize=7)
    figure.pe_alt = f"{title} ({note})"
    return figure, all_axes[0] if columns == 1 else all_axes


def _rates(axes: Any, look: Look, points: Sequence[Point], colour: int) -> None:
    """What was measured, and what the machine would do at its best."""
    values = [p.value for p in points]
    best = [p.best_rate for p in points]
    axes.plot(values, best, color=look.fg, linewidth=1.2, linestyle="--", label="machine's best")
    _marked(axes, look, values, [p.rate for p in points], colour, "measured")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _marked(
    axes: Any,
    look: Look,
    xs: Sequence[float],
    ranges: Sequence[Range],
    colour: int,
    label: str,
    line: str = "-",
) -> None:
    """Medians as marks, the spread as bars."""
    axes.errorbar(
        xs,
        [r.median for r in ranges],
        yerr=[
            [r.median - r.lowest for r in ranges],
            [r.highest - r.median for r in ranges],
        ],
        color=look.colour(colour),
        marker=MARKS[colour],
        markersize=5,
        linewidth=1.6,
        linestyle=line,
        elinewidth=1,
        capsize=3,
        label=label,
    )


def _doubling(axes: Any, points: Sequence[Point]) -> None:
    """An axis on which each value is twice the one before, with all of them written out."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([p.value for p in points])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(axes: Any, look: Look) -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=look.fg)


def _scaled(values: Range, factor: float) -> Range:
    return Range(values.median * factor, values.lowest * factor, values.highest * factor)


def _flops(point: Point) -> tuple[float, float, float]:
    """Operations a second: median, lowest, highest."""
    s, n = point.seconds, point.num_flops
    return n / s.median, n / s.highest, n / s.lowest


def _adaptive(figure: Plot) -> str:
    """The figure as an SVG with the colours of the reader's paper."""
    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(
            file, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None}
        )
    day = [*paper().values(), *(colour for colour, _ in colours())]
    night = [*paper(dark=True).values(), *(colour for colour, _ in colours(dark=True))]
    rules = "".join(
        f'[style*="{kind}: {matplotlib.colors.to_hex(light)}"]{{{kind}:{dark} !important}}'
        for light, dark in zip(day, night, strict=True)
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style>"
    words = figure.pe_alt.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(
        r"(<svg\b[^>]*>)",
        lambda m: f"{m[1]}\n<title>{words}</title>{style}",
        file.getvalue(),
        count=1,
    )
