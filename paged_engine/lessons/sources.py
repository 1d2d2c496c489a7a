"""Source beside source, and how many lines of code there are."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Any


def side_by_side(
    left: Callable[..., Any],
    right: Callable[..., Any],
    meet: Sequence[tuple[str, str]] = (),
    width: int = 50,
) -> None:
    """Print the bodies of two functions beside each other, without docstrings and comments.

    Args:
        left, right: The functions; their names stand above them.
        meet: Pairs of a piece of the left and one of the right: the lines in which they stand
            first are put beside each other.
        width: Of a column; longer lines are folded.
    """
    try:
        bodies = [_body(left), _body(right)]
    except OSError:  # made in a place without a file
        return print("no source is kept of one of them")
    columns = [[part for line in body for part in _folded(line, width)] for body in bodies]
    print(f"{left.__qualname__:{width}} | {right.__qualname__}")
    print(f"{'-' * width}-+-{'-' * width}")
    begins = [(0, 0)]
    for pieces in meet:
        places = [_place(c, p) for c, p in zip(columns, pieces, strict=True)]
        if None not in places:
            begins.append((places[0] or 0, places[1] or 0))
    begins.append((len(columns[0]), len(columns[1])))
    for (a, b), (c, d) in pairwise(begins):
        for one, other in zip_longest(columns[0][a:c], columns[1][b:d], fillvalue=""):
            print(f"{one:{width}} | {other}".rstrip())


def num_lines(*parts: Any) -> int:
    """Lines of code of functions and classes: no blank ones, no comments, no docstrings."""
    return sum(len(_plain(part).splitlines()) for part in parts)


def _body(function: Callable[..., Any]) -> list[str]:
    (node,) = ast.parse(_plain(function)).body
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    first, last = node.body[0].lineno, node.end_lineno
    lines = _plain(function).splitlines()[first - 1 : last]
    return textwrap.dedent("\n".join(lines)).splitlines()


def _plain(part: Any) -> str:
    """Its source, as written, without what a computer does not read."""
    source = textwrap.dedent(inspect.getsource(part))
    lines = source.splitlines()
    said: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                assert first.end_lineno is not None
                said.update(range(first.lineno, first.end_lineno + 1))
    kept = [line for number, line in enumerate(lines, 1) if number not in said]
    return "\n".join(
        line.split("  # ")[0].rstrip()
        for line in kept
        if line.strip() and not line.strip().startswith("#")
    )


def _place(lines: Sequence[str], piece: str) -> int | None:
    return next((number for number, line in enumerate(lines) if piece in line), None)


def _folded(line: str, width: int) -> list[str]:
    """A line in pieces that fit, the later ones further in."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False) or [""]
