"""The block map as a plot: the pool as a fixed grid."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from paged_engine import events as ev
from paged_engine.replay import EngineState
from paged_engine.visualizer.lanes import read_run, state_at
from paged_engine.visualizer.palette import pattern_of
from paged_engine.visualizer.plots.looks import Look, Plot, Theme, clipped

Polygon = list[tuple[float, float]]

_MOST_NAMED = 16
_POINTS = 72.0  # an inch
_HEAD, _EDGE, _LINE = 0.45, 0.15, 0.175  # inches: title, margin, a line of the legend
_COLUMN = 1.85  # inches: a column of the legend
_LABELLED = 14.0  # points that a cell needs to hold a number


def plot_blocks(
    state_or_log: EngineState | Iterable[ev.Event],
    step: int | None = None,
    *,
    title: str | None = None,
    theme: Theme = "light",
    ax: Any = None,
) -> Any:
    """Every block of the pool in a fixed grid, in the colour of whoever holds it.

    Args:
        state_or_log: A state, or all events of an engine.
        step: Of a log, at whose end; None: the first at which most blocks are in use.
        title: The message; None: how many blocks are in use.
        theme: "light" or "dark", as the page around it.
        ax: Axes of yours to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        PagedEngineError: The log is not whole, or there was no such step.
        InvalidConfigError: There is no such theme.
    """
    look = Look(theme)
    if isinstance(state_or_log, EngineState):
        state, when = state_or_log, ""
    else:
        events = list(state_or_log)
        step = read_run(events).busiest_step if step is None else step
        state, when = state_at(events, step), f" after step {step}"
    counts = f"{state.num_used} of {len(state.blocks)} blocks are in use"
    columns, width = _grid(len(state.blocks))
    rows = -(-max(1, len(state.blocks)) // columns)
    pool = _Pool(state, look, columns, width / columns * _POINTS)
    if ax is None:
        # placed by hand: the grid has its proportions, and a legend that may be wider than it
        tall = width * rows / columns
        height = _HEAD + tall + _LINE * pool.num_lines(width) + 2 * _EDGE
        figure = Plot(width + 2 * _EDGE, height)
        figure.set_layout_engine("none")
        figure.set_facecolor(look.bg)
        below = height - _HEAD - tall
        ax = figure.add_axes(
            (
                _EDGE / figure.get_figwidth(),
                below / height,
                width / figure.get_figwidth(),
                tall / height,
            )
        )
    figure = ax.get_figure(root=True)
    pool.draw(ax, width)
    look.title(ax, counts + when if title is None else title, width)
    figure.pe_alt = f"{counts}{when}. {_tell_pool(state)}"
    return figure


class _Pool:
    """Draws the grid: a block is a square of side 1, less a gap."""

    def __init__(self, state: EngineState, look: Look, columns: int, points: float) -> None:
        self._state, self._look, self._columns = state, look, columns
        self._points = points  # that a cell is wide
        self._side = 0.9 if points >= 12 else 0.84
        self._numbers = {name: i for i, name in enumerate(state.requests)}
        owners = state.owners()
        self._holders = [
            [self._numbers[name] for name in owners.get(i, ())] for i in range(len(state.blocks))
        ]
        self._fills = _fills(state)

    def num_lines(self, width: float) -> int:
        """Of the legend."""
        return -(-len(self._entries()) // max(1, int(width / _COLUMN)))

    def draw(self, ax: Any, width: float) -> None:
        look = self._look
        free: list[Polygon] = []
        cached: list[Polygon] = []
        outlines: list[tuple[int, Polygon]] = []
        areas: dict[int, list[Polygon]] = {number: [] for number in self._numbers.values()}
        for block_id, holders in enumerate(self._holders):
            square = self._square(block_id)
            if not holders:
                is_free = self._state.blocks[block_id].block_hash is None
                (free if is_free else cached).append(square)
            elif len(holders) > 1:
                (x, y), far = square[0], square[2]
                areas[holders[0]].append([(x, y), (far[0], y), (x, far[1])])
                areas[holders[1]].append([(far[0], y), far, (x, far[1])])
            else:
                fill = self._fills[block_id]
                areas[holders[0]].append(self._square(block_id, fill))
                if fill < 1:
                    free.append(square)
                    outlines.append((holders[0], square))
        _area(ax, free, facecolor=look.free, linewidth=0, zorder=1)
        _area(ax, cached, **look.cached(), zorder=1)
        for number, polygons in areas.items():
            _area(ax, polygons, **look.fill(number), zorder=2)
        for number, square in outlines:
            edge = {"edgecolor": look.colour(number), "linewidth": 0.8}
            _area(ax, [square], facecolor="none", **edge, zorder=3)
        self._label(ax)
        look.dress(ax, ticks=False)
        rows = -(-max(1, len(self._holders)) // self._columns)
        ax.set(xlim=(-0.1, self._columns), ylim=(rows, -0.1), aspect="equal")
        look.legend(ax, self._entries(), max(1, int(width / _COLUMN)))

    def _square(self, block_id: int, share: float = 1.0) -> Polygon:
        y, x = divmod(block_id, self._columns)
        right, low = x + self._side * share, y + self._side
        return [(x, y), (right, y), (right, low), (x, low)]

    def _label(self, ax: Any) -> None:
        """The number of whoever holds it: on each block, or once on the longest row of them."""
        large = self._points >= _LABELLED
        longest: dict[int, tuple[int, int]] = {}  # number: how many in a row, and the first
        runs = groupby(
            range(len(self._holders)), key=lambda i: (i // self._columns, self._holders[i])
        )
        for (_, holders), group in runs:
            members = list(group)
            if large and holders:
                for block_id in members:
                    self._write(ax, block_id, 1, holders)
            elif len(holders) == 1:
                best = longest.get(holders[0], (0, 0))
                longest[holders[0]] = max(best, (len(members), -members[0]))
        for number, (length, first) in longest.items():
            if length * self._points >= 7 + 5 * len(str(number)):
                self._write(ax, -first, length, [number])

    def _write(self, ax: Any, block_id: int, length: int, holders: list[int]) -> None:
        y, x = divmod(block_id, self._columns)
        shared, number = len(holders) > 1, holders[0]
        plain = length == 1 and not shared and not pattern_of(number)
        on_colour = plain and self._fills[block_id] > 0.7
        around = None if on_colour else {"boxstyle": "round,pad=0.12", "fc": self._look.bg}
        ax.text(
            x + (length - 1 + self._side) / 2,
            y + self._side / 2,
            f"×{len(holders)}" if shared else str(number),
            ha="center",
            va="center_baseline",
            fontsize=7 if self._points >= 12 else 6,
            color=self._look.ink(number) if on_colour else self._look.fg,
            bbox=around if around is None else {**around, "lw": 0, "alpha": 0.85},
            zorder=4,
        )

    def _entries(self) -> list[tuple[Any, str]]:
        state, look = self._state, self._look
        holding = [r for r in state.requests.values() if r.block_table]
        entries: list[tuple[Any, str]] = []
        for request in holding[:_MOST_NAMED]:
            number = self._numbers[request.request_id]
            words = f"{number}  {clipped(request.request_id)}: {len(request.block_table)}"
            entries.append((Patch(**look.fill(number)), words))
        if len(holding) > _MOST_NAMED:
            more = f"and {len(holding) - _MOST_NAMED} more requests"
            entries.append((Line2D([], [], linewidth=0), more))
        entries.append((Patch(facecolor=look.free), "free"))
        if state.num_cached:
            entries.append((Patch(**look.cached()), "cached, reusable"))
        if any(len(holders) > 1 for holders in self._holders):
            entries.append((Line2D([], [], linewidth=0), "×2, two colours: shared"))
        if any(fill < 1 for fill in self._fills.values()):
            mark = Patch(facecolor=look.free, edgecolor=look.soft, linewidth=0.8)
            entries.append((mark, "part full"))
        return entries


def _grid(number: int) -> tuple[int, float]:
    """Columns, a power of two, and the width of the whole in inches."""
    columns = 8
    while number > columns * columns / 2 and columns < 256:
        columns *= 2
    return columns, 5.5 if columns <= 16 else 7.5 if columns <= 64 else 9.5


def _area(ax: Any, polygons: list[Polygon], **look: Any) -> None:
    """Many polygons as one patch, so that thousands are drawn at once."""
    if not polygons:
        return
    closed = [Path([*polygon, polygon[0]], closed=True) for polygon in polygons]
    ax.add_patch(PathPatch(Path.make_compound_path(*closed), **look))


def _fills(state: EngineState) -> dict[int, float]:
    """How full each used block is, from 0 to 1: the best of what its holders computed."""
    fills: dict[int, float] = {}
    for request in state.requests.values():
        for index, block_id in enumerate(request.block_table):
            slots = min(state.block_size, request.num_computed_tokens - index * state.block_size)
            fills[block_id] = max(fills.get(block_id, 0.0), max(0, slots) / state.block_size)
    return fills


def _tell_pool(state: EngineState) -> str:
    free = len(state.blocks) - state.num_used - state.num_cached
    shared = sum(block.ref_cnt > 1 for block in state.blocks)
    held = [
        f"{r.request_id} holds {len(r.block_table)} with {r.num_computed_tokens} tokens"
        for r in state.requests.values()
        if r.block_table
    ]
    counts = f"{shared} shared, {state.num_cached} cached and {free} free."
    return f"{counts} {'; '.join(held)}." if held else f"{counts} Nobody holds a block."
