"""Every notebook walked through as a reader does it who first fails and then finds out.

In one namespace, cell by cell: each exercise is checked with its stub, with every planted wrong
answer and with its solution, which then stays; each bug hunt is answered wrongly and rightly.  So
all later cells run on the solutions.  The notebook with its stubs is the strict run of nbval.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from paged_engine.lessons import exercises
from paged_engine.lessons.bug_hunts import find_hunt
from tests.notebooks.lesson import NOTEBOOKS, Cell, cells_of, facts_of, solutions_of
from tests.notebooks.margins import SMALLEST_MARGIN, Watch

SHORT = 2.0  # seconds that a wrong answer may take: one that never ends is among them
LONG = exercises.TIME_LIMIT


class Walk:
    """Runs the cells of a notebook as one program.

    Attributes:
        problems: What was not as it should be.
    """

    def __init__(self, path: Path, watch: Watch) -> None:
        self.cells = cells_of(path)
        self.solutions = solutions_of(self.cells)
        self.wrong: dict[str, dict[str, str]] = getattr(facts_of(path), "WRONG", {})
        self.watch = watch
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.problems: list[str] = []

    def run(self, source: str) -> str:
        """What it prints."""
        self.watch.cell = source
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "<cell>", "exec"), self.names)
        return printed.getvalue()

    async def walk(self) -> None:
        """All cells; inside an event loop, as in a kernel, for live views."""
        for cell in self.cells:
            if cell.kind != "code":
                continue
            if name := cell.tagged("check"):
                self._check(name, cell)
            elif name := cell.tagged("hunt"):
                self._hunt(name, cell)
            else:
                self.run(cell.source)
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def _check(self, name: str, cell: Cell) -> None:
        self.watch.is_on = False
        self._expect("not attempted", self.run(cell.source), name, "the stub")
        exercises.TIME_LIMIT = SHORT
        for what, source in self.wrong.get(name, {}).items():
            self.run(source)
            self._expect("not yet", self.run(cell.source), name, what)
        exercises.TIME_LIMIT = LONG
        self.watch.is_on = True
        self.run(self.solutions[name])
        self._expect("passed", self.run(cell.source), name, "the solution")

    def _hunt(self, name: str, cell: Cell) -> None:
        hunt = find_hunt(name)
        if "None" not in cell.source:
            self.problems.append(f"hunt {name}: no None stands where the answer goes")
        for letter in hunt.suspects:
            said = self.run(cell.source.replace("None", repr(letter)))
            wanted = "solved" if letter == hunt.guilty else f"not {letter}"
            self._expect(wanted, said, f"hunt {name}", f"answer {letter}")

    def _expect(self, wanted: str, said: str, name: str, what: str) -> None:
        if wanted not in said:
            self.problems.append(f"{name}, {what}: expected {wanted!r}, it said {said!r}")


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_fails_finds_out_and_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    monkeypatch.setattr(exercises, "TIME_LIMIT", LONG)
    monkeypatch.setattr(exercises, "_results", {})
    walk = Walk(path, watch)
    asyncio.run(walk.walk())
    assert not walk.problems, "\n".join(walk.problems)
    closest = watch.closest()
    assert closest.margin > SMALLEST_MARGIN, (
        f"token {closest.token_id} won by {closest.margin:.2g} only, in:\n{closest.cell}"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_check_a_solution_and_three_wrong_answers(path: Path) -> None:
    cells = cells_of(path)
    names = [name for cell in cells if (name := cell.tagged("exercise"))]
    checked = [name for cell in cells if (name := cell.tagged("check"))]
    assert names == checked == list(solutions_of(cells))
    wrong = getattr(facts_of(path), "WRONG", {})
    assert sorted(wrong) == sorted(names)
    for name in names:
        assert name.startswith(path.stem[:2])
        assert len(wrong[name]) >= 3, f"{name} has {len(wrong[name])} wrong answers"
        assert len(set(wrong[name].values())) == len(wrong[name])
