"""The notebooks without solutions: nothing of them is left, all else is, and they run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from paged_engine.lessons.folders import MARK
from paged_engine.lessons.student import INSTEAD, main, without_solutions, write_student
from tests.notebooks.lesson import NOTEBOOKS, REPO, Cell, cells_of, solutions_of

MOST_ALIKE = 3  # lines in a row that a notebook may share with a solution: an idiom, no answer


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class") / "student"
    assert write_student(REPO, folder) == len(NOTEBOOKS)
    return folder


def hers(student: Path, path: Path) -> list[Cell]:
    return cells_of(student / "notebooks" / path.name)


def body_of(solution: str) -> list[str]:
    """Its lines without names, docstrings and blanks: those that one has to find."""
    lines = re.sub(r'""".*?"""', "", solution, flags=re.DOTALL).splitlines()
    given = re.compile(r"def |class |@|return \w+$|import |from |#")
    return [line.strip() for line in lines if line.strip() and not given.match(line.strip())]


def shown(cell: Cell) -> str:
    outputs = [
        "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
        for output in cell.outputs
    ]
    return "\n".join([cell.source, *outputs])


def longest_copied(body: list[str], text: str) -> int:
    """How many lines of a solution stand in a text, one after the other."""
    there = "\n".join(line.strip() for line in text.splitlines() if line.strip())
    best = 0
    for start in range(len(body)):
        while start + best < len(body) and "\n".join(body[start : start + best + 1]) in there:
            best += 1
    return best


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_is_left(student: Path, path: Path) -> None:
    cells, solutions = hers(student, path), solutions_of(cells_of(path))
    text = "\n".join(shown(cell) for cell in cells)
    assert "<summary>Solution" not in text and "<summary>Answer" not in text
    assert "The answer is **" not in text
    for name, solution in solutions.items():
        body = body_of(solution)
        assert body, name
        if len(body) > MOST_ALIKE:
            assert longest_copied(body, text) <= MOST_ALIKE, name
        else:
            assert solution.strip() not in text, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_else_is_as_it_was(student: Path, path: Path) -> None:
    """Code to the letter: so they run where the notebooks do, which the notebooks' tests show."""
    for old, new in zip(cells_of(path), hers(student, path), strict=True):
        assert (old.kind, old.tags) == (new.kind, new.tags)
        if old.kind == "code":
            assert old.source == new.source
            its_own = any(old.tagged(name) for name in ("exercise", "check", "hunt"))
            assert new.outputs == ([] if its_own else old.outputs)
        elif old.tagged("solution"):
            assert new.source.startswith("<details><summary>Hint</summary>")
            assert new.source.count("<details>") == new.source.count("</details>") == 1
        elif "<summary>Answer</summary>" not in old.source:
            assert old.source == new.source
        else:
            assert new.source
    nbformat.validate(nbformat.read(student / "notebooks" / path.name, as_version=4))


def test_the_search_for_solutions_finds_them() -> None:
    """The test above can fail."""
    for path in NOTEBOOKS:
        for solution in solutions_of(cells_of(path)).values():
            body = body_of(solution)
            assert longest_copied(body, solution) >= min(len(body), 2)
            assert longest_copied(body, "a = 1\n") == 0


def test_pages_and_pictures_come_along(student: Path) -> None:
    names = {file.relative_to(student).as_posix() for file in student.rglob("*") if file.is_file()}
    assert {"notebooks/README.md", "notebooks/GLOSSARY.md", "assets/series_map.svg"} <= names
    for path in NOTEBOOKS:
        for target in re.findall(r"\]\(\.\./(assets/[^)#\s]+)\)", path.read_text(encoding="utf-8")):
            assert target in names or not (REPO / target).exists()


def test_a_student_notebook_runs_and_says_not_attempted(student: Path, tmp_path: Path) -> None:
    """As far as its first exercise: the rest is, to the letter, what the notebooks' tests run."""
    (file,) = (student / "notebooks").glob("04_*.ipynb")
    notebook = nbformat.read(file, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    first = next(i for i, of in enumerate(tags) if any(tag.startswith("check:") for tag in of))
    notebook.cells = notebook.cells[: first + 1]
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "not attempted yet" in notebook.cells[-1].outputs[0].text


def folded(name: str, text: str = "x") -> str:
    return f"<details><summary>{name}</summary>\n\n{text}\n</details>\n"


def made(*sources: str) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": source} for source in sources
    ]
    cells.append({"cell_type": "code", "metadata": {}, "source": "1", "outputs": [1]})
    return {"cells": cells, "metadata": {"widgets": {}}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (folded("Hint") + "\n" + folded("Solution"), folded("Hint").strip()),
        (folded("Answer"), INSTEAD),
        (folded("Answer") + "\nGo on.", "Go on."),
        ("Look.\n\n" + folded("Answer", "a <code>b</code>"), "Look."),
        (folded("1. What is a block?"), folded("1. What is a block?")),
    ],
)
def test_what_is_folded_away_goes_or_stays(before: str, after: str) -> None:
    assert "".join(without_solutions(made(before))["cells"][0]["source"]) == after


def test_all_outputs_can_go() -> None:
    notebook = without_solutions(made(), keep_outputs=False)
    assert notebook["cells"][0]["outputs"] == [] and notebook["metadata"] == {}
    assert without_solutions(made())["cells"][0]["outputs"] == [1]


def test_work_in_the_folder_is_not_overwritten(tmp_path: Path, capsys: Any) -> None:
    root, to = tmp_path / "repo", tmp_path / "student"
    (root / "notebooks").mkdir(parents=True)
    command = ["--root", str(root), "--to", str(to)]
    assert main(command) == 1 and "no notebooks" in capsys.readouterr().err
    (root / "notebooks/01_a.ipynb").write_text(json.dumps(made(folded("Answer"))))
    assert main(command) == 0 and "1 notebooks without solutions" in capsys.readouterr().out
    (to / "notebooks/01_a.ipynb").write_text("her work")
    assert main(command) == 1 and "--force" in capsys.readouterr().err
    assert (to / "notebooks/01_a.ipynb").read_text() == "her work"
    assert main([*command, "--force"]) == 0 and (to / MARK).exists()
    assert "her work" not in (to / "notebooks/01_a.ipynb").read_text()
