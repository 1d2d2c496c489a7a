"""Sources side by side, lines counted, and one step drawn."""

from __future__ import annotations

import pytest

from paged_engine import events as ev
from paged_engine.lessons import num_lines, side_by_side
from paged_engine.lessons.swim_lanes import LANES, draw_step


def short(a: int) -> int:
    """A docstring
    of two lines."""
    # a comment
    b = a + 1  # and another

    return b


def long(a: int) -> int:
    total = 0
    for number in range(a):
        total += number
    b = total
    return b


class Both:
    """Something."""

    def method(self) -> None:
        """Nothing else: a docstring that is all there is counts."""


def test_docstrings_comments_and_blank_lines_do_not_count() -> None:
    assert num_lines(short) == 3
    assert num_lines(short, long) == 9
    assert num_lines(Both) == 3


def test_lines_that_meet_stand_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    side_by_side(short, long, [("return", "return"), ("nowhere", "return")], width=20)
    rows = [row.split("|") for row in capsys.readouterr().out.splitlines() if "|" in row]
    bodies = [[cell.strip() for cell in row] for row in rows]
    assert bodies[0] == ["short", "long"]
    assert bodies[-1] == ["return b", "return b"]
    assert bodies[1] == ["b = a + 1", "total = 0"] and bodies[2][0] == ""


def test_a_line_that_is_too_long_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    side_by_side(long, short, width=14)
    out = capsys.readouterr().out
    assert "for number in " in out and "for number in range(a):" not in out


def test_a_function_without_a_source_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    exec("def made(): return 1", space)
    side_by_side(short, space["made"])  # type: ignore[arg-type]
    assert "no source" in capsys.readouterr().out


def test_every_event_of_a_step_is_drawn_in_its_row() -> None:
    step = [
        ev.StepBegan(0.0, 1, 8),
        ev.Admitted(0.0, 1, "A"),
        ev.Allocated(0.0, 1, "A", (0, 1)),
        ev.Scheduled(0.0, 1, "A", 0, 8),
        ev.Computed(0.0, 1, "B", 3),
        ev.Cached(0.0, 1, 0, 7),  # nobody's row
        ev.Token(0.0, 1, "A", 5),
        ev.Freed(0.0, 1, "A", (0, 1)),
        ev.Finished(0.0, 1, "A", "stop"),
        ev.StepEnded(0.0, 1, 8),
    ]
    figure = draw_step(step, "A step", ["A", "B"], lambda token_id: f"word {token_id}")
    (axes,) = figure.axes
    rows = list(axes.lines[0].get_ydata())
    assert rows == [0, 1, 2, 1, 3, 3, 2, 4, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LANES)
    said = [text.get_text() for text in axes.texts]
    assert "A\n+2 blocks" in said and "A\nword 5" in said and "B\n3 done" in said
    assert "admitted A" in figure.pe_alt and "cached" not in figure.pe_alt
    assert "<svg" in figure._repr_mimebundle_()[0]["image/svg+xml"]
