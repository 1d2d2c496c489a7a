"""What the plots share: the figure that tells itself in words, and the looks of light and dark.

Nothing here touches pyplot, a backend or `rcParams`: every colour is set on what it belongs to.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from paged_engine.errors import InvalidConfigError
from paged_engine.visualizer.palette import NUM_COLOURS, colours, paper, pattern_of

Theme = Literal["light", "dark"]

_HATCHES = ["", "////", "...."]  # plain, striped, dotted
_CHARACTERS_AN_INCH = 9  # of a title


class Plot(Figure):
    """A figure of matplotlib that also says in words what it shows.

    Jupyter draws it when it stands last in a cell, with or without `%matplotlib inline`.

    Attributes:
        pe_alt: What a reader who cannot see it is told.  A figure that you brought yourself
            gets the same attribute.
    """

    pe_alt = ""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def __repr__(self) -> str:
        return textwrap.fill(self.pe_alt, 88)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120, facecolor=self.get_facecolor())
        data = {"image/png": file.getvalue(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.pe_alt}}


class Look:
    """The colours of one theme, and how things are dressed in them.

    Raises:
        InvalidConfigError: There is no such theme.
    """

    def __init__(self, theme: str) -> None:
        if theme not in ("light", "dark"):
            raise InvalidConfigError(f"theme is {theme!r}; expected 'light' or 'dark'")
        names = paper(theme == "dark")
        self.bg, self.fg, self.soft = names["bg"], names["fg"], names["soft"]
        self.line, self.free, self.hatch = names["line"], names["free"], names["hatch"]
        self.alarm = names["alarm"]
        self._colours = colours(theme == "dark")

    def colour(self, number: int) -> str:
        """Of request `number`."""
        return self._colours[number % NUM_COLOURS][0]

    def ink(self, number: int) -> str:
        """What can be read on it."""
        return self._colours[number % NUM_COLOURS][1]

    def fill(self, number: int) -> dict[str, Any]:
        """How an area of request `number` is filled: its colour, and its pattern over it."""
        return {
            "facecolor": self.colour(number),
            "edgecolor": self.bg,  # which is also the colour of the pattern
            "linewidth": 0,
            "hatch": _HATCHES[pattern_of(number)],
        }

    def cached(self) -> dict[str, Any]:
        """How a block is filled that nobody holds but that can be found again."""
        return {
            "facecolor": self.free,
            "edgecolor": self.hatch,
            "linewidth": 0,
            "hatch": "\\\\\\\\",  # the other way than a request's stripes
        }

    def dress(self, axes: Any, *, ticks: bool = True) -> None:
        """Give axes the theme's colours, and a frame that does not compete with what is drawn."""
        axes.set_facecolor(self.bg)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(self.line)
        axes.tick_params(colors=self.soft, labelsize=8, labelcolor=self.fg)
        axes.xaxis.label.set(color=self.fg, size=9)
        axes.yaxis.label.set(color=self.fg, size=9)
        if not ticks:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)

    def title(self, axes: Any, words: str, width: float, size: float = 11) -> None:
        """The message, on as many lines as it needs."""
        most = round(width * _CHARACTERS_AN_INCH * 11 / size)
        lines = "\n".join(textwrap.fill(line, most) for line in shown(words).splitlines())
        axes.set_title(lines, loc="left", color=self.fg, fontsize=size, fontweight="bold")

    def legend(
        self, axes: Any, entries: Sequence[tuple[Any, str]], columns: int, below: float = 0.08
    ) -> None:
        """Marks and their names, that many inches below the axes."""
        down = ScaledTranslation(0, -below, axes.get_figure(root=True).dpi_scale_trans)
        axes.legend(
            [mark for mark, _ in entries],
            [shown(words) for _, words in entries],
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=axes.transAxes + down,
            ncols=min(columns, len(entries)),
            fontsize=8,
            frameon=False,
            borderaxespad=0,
            borderpad=0,
            handlelength=1.6,
            columnspacing=1.4,
            labelcolor=self.fg,
        )


def shown(words: str) -> str:
    """Text as it may stand in a figure: no control character, and `$` begins no formula."""
    visible = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in words)
    return visible.replace("$", r"\$")


def clipped(words: str, most: int = 16) -> str:
    """The beginning of a name."""
    return words if len(words) <= most else words[: most - 1] + "…"
