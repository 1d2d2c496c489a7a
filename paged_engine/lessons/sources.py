"""Source beside source, and how many lines of code there are."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from itertools import zip_longest
from typing import Any


def side_by_side(left: Callable[..., Any], right: Callable[..., Any], width: int = 43) -> None:
    """Print the bodies of two functions beside each other, without docstrings and comments.

    Args:
        left, right: The functions; their qualified names stand above them.
        width: Of a column; longer lines are folded.
    """
    columns = [[f.__qualname__, "-" * len(f.__qualname__), *_body(f)] for f in (left, right)]
    one, other = ([part for line in lines for part in _folded(line, width)] for lines in columns)
    for a, b in zip_longest(one, other, fillvalue=""):
        print(f"{a:{width}} | {b}".rstrip())


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


def _folded(line: str, width: int) -> list[str]:
    """A line in pieces that fit, the later ones further in."""
    indent = len(line) - len(line.lstrip())
    return textwrap.wrap(line, width, subsequent_indent=" " * (indent + 4)) or [""]
