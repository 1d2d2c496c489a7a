"""What is brought from an earlier notebook: the reader's answer if it passes, else the lesson's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paged_engine.errors import PagedEngineError
from paged_engine.lessons import bring, exercises
from paged_engine.lessons.bring import _ANSWERS
from paged_engine.lessons.solutions import nb05, nb06
from tests.notebooks.lesson import REPO, cells_of

POOL = """\
class BlockPool:
    mine = True

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.ids, self.used = deque(range(num_blocks)), set()

    @property
    def num_free(self):
        return len(self.ids)

    def allocate(self, n):
        if n > len(self.ids):
            return None
        taken = [self.ids.popleft() for _ in range(n)]
        self.used |= set(taken)
        return taken

    def free(self, block_ids):
        if len(set(block_ids)) < len(block_ids) or not set(block_ids) <= self.used:
            raise BlockPoolError("not in use")
        self.used -= set(block_ids)
        self.ids.extend(block_ids)
"""
IMPORTS = "from collections import deque\nfrom paged_engine.errors import BlockPoolError\n1 / 0"


def notebook(folder: Path, answer: str, *others: str, name: str = "06.1") -> None:
    """A notebook with the answer to an exercise, and other cells before it."""
    cells = [{"cell_type": "code", "metadata": {}, "source": other} for other in others]
    tagged = {"cell_type": "code", "metadata": {"tags": [f"exercise:{name}"]}, "source": [answer]}
    text = {"cell_type": "markdown", "metadata": {}, "source": "# not Python"}
    file = folder / f"{name[:2]}_block_pool.ipynb"
    file.write_text(json.dumps({"cells": [text, *cells, tagged]}), encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "_results", {})


def test_an_answer_that_passes_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what other cells import; nothing else of them is run, and half a cell does no harm."""
    notebook(tmp_path, POOL, IMPORTS, "def half(")
    brought = bring("06.1", tmp_path)
    assert brought.mine and brought is not nb06.BlockPool
    assert capsys.readouterr().out == "06.1 BlockPool: yours\n"


@pytest.mark.parametrize(
    "answer, why",
    [
        (POOL.replace("self.used -= set(block_ids)", "pass"), "does not pass its check"),
        ("class BlockPool(Missing):\n    pass", "raises NameError on its own"),
        ("def half(", "raises SyntaxError on its own"),
        ("class BlockPool:\n    def free(self, block_ids):\n        ...\n", ""),
        ("other = 3", ""),
    ],
)
def test_the_lessons_own_comes_for_anything_else(
    answer: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook(tmp_path, answer, IMPORTS)
    assert bring("06.1", tmp_path) is nb06.BlockPool
    said = capsys.readouterr().out
    assert said.startswith("06.1 BlockPool: the lesson's own") and why in said
    assert said.count("\n") == 1, "the check itself is not heard"


def test_without_a_notebook_the_lessons_own_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring("05.1", tmp_path) is nb05.schedule
    assert capsys.readouterr().out == "05.1 schedule: the lesson's own\n"


@pytest.mark.parametrize("name", ["05.3", "99.1", "x"])
def test_nothing_else_can_be_brought(name: str, tmp_path: Path) -> None:
    with pytest.raises(PagedEngineError, match="exercise"):
        bring(name, tmp_path)


@pytest.mark.parametrize("name", _ANSWERS)
def test_names_are_those_of_the_notebooks(name: str) -> None:
    (path,) = (REPO / "notebooks").glob(f"{name[:2]}_*.ipynb")
    (check,) = [cell.source for cell in cells_of(path) if cell.tagged("check") == name]
    assert f'check("{name}", {_ANSWERS[name]})' in check
