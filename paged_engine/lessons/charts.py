"""Charts of the notebooks: alike to look at, told in words, and comparable where they show counts.

    figure, axes = chart("Each token costs more", "new token", "tokens computed")
    axes.plot(...)
    figure.tell("a line that rises ...")
    figure                                    # last in the cell

A chart of counts is an SVG that is the same in every run, so that the tests compare it, and beside
it a PNG for where SVG is not trusted.  One of measured times (`timed=True`) is a PNG alone, which
they do not compare.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import matplotlib

from paged_engine.visualizer.plots.looks import Look, Plot, Theme
from paged_engine.visualizer.static import WIDTH

WIDEST = WIDTH / 96  # in inches: JupyterLab does not shrink an SVG, it cuts it
_SETTINGS = {"svg.hashsalt": "paged_engine", "svg.fonttype": "none"}


class Chart(Plot):
    """A figure that Jupyter shows by itself.

    Attributes:
        look: The colours: `look.colour(number)` is that of request `number`.
    """

    def __init__(self, width: float, height: float, *, timed: bool, theme: Theme) -> None:
        super().__init__(width, height)
        self.look = Look(theme)
        self.set_facecolor(self.look.bg)
        self._timed = timed

    def tell(self, words: str) -> None:
        """Say what it shows, for who cannot see it."""
        self.pe_alt = words

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._timed:
            return super()._repr_mimebundle_(**options)
        file = io.StringIO()
        with matplotlib.rc_context(_SETTINGS):
            self.savefig(file, format="svg", metadata={"Date": None})
        self.set_layout_engine("none")  # laid out once: twice would move things by a hair
        data, metadata = super()._repr_mimebundle_(**options)
        return {"image/svg+xml": file.getvalue(), **data}, metadata


def chart(
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    columns: int = 1,
    width: float = 8.0,
    height: float = 3.2,
    timed: bool = False,
    theme: Theme = "light",
) -> tuple[Chart, Any]:
    """A figure and its axes.

    Args:
        title: The message, not the subject.
        xlabel, ylabel: With their units.
        columns: Axes side by side; with more than one a list of them is returned.
        width, height: In inches; wider than `WIDEST` is cut on a small screen.
        timed: It shows times, which differ from run to run.
        theme: "light" or "dark".
    """
    figure = Chart(width, height, timed=timed, theme=theme)
    all_axes = figure.subplots(1, columns, squeeze=False)[0]
    for axes in all_axes:
        figure.look.dress(axes)
        axes.set_xlabel(xlabel)
    all_axes[0].set_ylabel(ylabel)
    figure.look.title(all_axes[0], title, width)
    figure.tell(title)
    return figure, all_axes[0] if columns == 1 else list(all_axes)


def best_of(times: int, function: Callable[[], Any]) -> float:
    """The least seconds that it took, of so many times: what the machine can do undisturbed."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best
