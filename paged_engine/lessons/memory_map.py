"""A picture of memory as rows of slots: who has reserved which, and how much is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paged_engine.lessons.charts import Chart

_ROW = 64  # slots


def draw_memory(
    figure: Chart,
    axes: Any,
    pieces: Mapping[str, Sequence[tuple[int, int]]],
    kept: Mapping[str, int],
    num_slots: int,
    num_rows: int,
) -> None:
    """Rows of 64 slots from the top down; pale is reserved and empty, grey is free.

    Args:
        figure, axes: Of a chart.
        pieces: For each request, named by its number, (first slot, number of slots) of each
            piece of memory that it has, in the order of its tokens.
        kept: How many tokens each keeps; they fill its pieces from the front.
        num_slots: Of this memory.
        num_rows: That the axes have room for, so that several memories have one scale.
    """
    look = figure.look
    _paint(axes, 0, num_slots, color=look.free)
    for name, parts in pieces.items():
        left, fill = kept[name], look.fill(int(name))
        for first, slots in parts:
            _paint(axes, first, slots, color=fill["facecolor"], alpha=0.25)
            _paint(axes, first, min(slots, left), **fill)
            left -= min(slots, left)
        row, column = divmod(parts[0][0], _ROW)
        paper = {"facecolor": look.bg, "pad": 0.8, "linewidth": 0}
        at = {"fontsize": 6, "color": look.fg, "va": "center_baseline"}
        axes.text(min(column + 1.5, _ROW - 4), row, name, bbox=paper, **at)
    axes.set(xlim=(0, _ROW), ylim=(num_rows - 0.4, -0.6), xticks=(0, _ROW // 2, _ROW))


def _paint(axes: Any, first: int, count: int, **looks: Any) -> None:
    """A run of slots, which may go on in the next rows."""
    while count > 0:
        row, column = divmod(first, _ROW)
        width = min(count, _ROW - column)
        axes.barh(row, width, 0.86, column, **looks)
        first, count = first + width, count - width
