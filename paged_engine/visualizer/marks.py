"""Small pieces of SVG that both panels are drawn with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape as _escape

from paged_engine.visualizer.palette import colour_class, pattern_of

Parts = list[str]

# What XML 1.0 does not allow even escaped; a request may be called anything.
_UNSPEAKABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """Text as it may stand in an SVG document."""
    return _escape(_UNSPEAKABLE.sub("\ufffd", text))


def num(value: float) -> str:
    """A coordinate, to a tenth of a pixel, as short as it goes."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def text(x: float, y: float, words: str, css: str = "") -> str:
    """One line of text."""
    css = f' class="{css}"' if css else ""
    return f'<text{css} x="{num(x)}" y="{num(y)}">{escape(words)}</text>'


def path(d: str, css: str, extra: str = "") -> str:
    """A path; nothing where there is nothing to draw."""
    return f'<path class="{css}" {extra}{" " if extra else ""}d="{d}"/>' if d else ""


def box(x: float, y: float, width: float, height: float) -> str:
    """A rectangle as a piece of a path."""
    return f"M{num(x)} {num(y)}h{num(width)}v{num(height)}h{num(-width)}z"


def filled(d: str, number: int) -> str:
    """A path in the colour of request `number`, with its pattern laid over."""
    over = pattern_of(number)
    if not d or not over:
        return path(d, colour_class(number))
    pattern = f'<path style="fill:url(#pe-over{over})" d="{d}"/>'
    return path(d, colour_class(number)) + pattern


def clipped(words: str, most: int) -> str:
    """Text of at most so many characters."""
    return words if len(words) <= most else words[: most - 1] + "…"


def width_of(words: str) -> float:
    """About how wide a line of ordinary text is."""
    return 6.0 * len(words)


def legend(
    x: float, y: float, width: float, entries: Iterable[tuple[str, str]]
) -> tuple[Parts, float]:
    """Marks with their names, in as many lines as they need.

    Args:
        entries: An SVG mark drawn in a square of 12 around (0, 0), and its name.

    Returns:
        The parts, and their height.
    """
    parts: Parts = []
    left, line = x, 0
    for mark, name in entries:
        needed = width_of(name) + 30
        if left > x and left + needed > x + width:
            left, line = x, line + 1
        top = y + 8 + 18 * line
        parts.append(f'<g transform="translate({num(left + 7)} {num(top)})">{mark}</g>')
        parts.append(text(left + 18, top + 4, name, "soft"))
        left += needed
    return parts, 18 * (line + 1)
