"""What a program can see of the notebooks' style: sizes, the top, links, pictures, outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
FIRST = REPO / "notebooks" / "00_start_here.ipynb"
TIMING_TAG = "nbval-ignore-output"
# The first line of code of every cell that shows times.  Nothing else may go uncompared.
TIMING_CELLS = {"00_start_here": ["import platform"]}

Cell = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def cells(path: Path, kind: str) -> list[Cell]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def text(path: Path) -> str:
    return "\n\n".join(source(cell) for cell in cells(path, "markdown"))


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_is_a_first_notebook() -> None:
    assert FIRST in NOTEBOOKS


@each_notebook
def test_the_first_line_is_a_question_and_a_box_follows(path: Path) -> None:
    top = source(read(path)["cells"][0])
    assert re.fullmatch(r"# .+\?", top.splitlines()[0])
    for word in ("Minutes", "Before this", "GPU", "Downloads"):
        assert f"**{word}**" in top, f"the box says nothing of {word}"


@each_notebook
def test_the_result_comes_before_the_first_code(path: Path) -> None:
    before = []
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code":
            break
        before.append(source(cell))
    assert "![" in "".join(before) or "```" in "".join(before)


@each_notebook
def test_a_notebook_can_be_read_in_a_sitting(path: Path) -> None:
    code = [len(source(cell).splitlines()) for cell in cells(path, "code")]
    assert 40 <= len(read(path)["cells"]) <= 80
    assert median(code) <= 8 and max(code) <= 30
    assert sum(code) <= 350
    prose = re.sub(r"^\|.*$", "", text(path), flags=re.MULTILINE)  # tables are not read through
    assert 1_000 <= len(prose.split()) <= 2_500


@each_notebook
def test_no_line_is_too_long(path: Path) -> None:
    for number, cell in enumerate(read(path)["cells"]):
        for line in source(cell).splitlines():
            prose = re.sub(r"\]\([^)]*\)", "]", line)  # an address cannot be broken
            table = cell["cell_type"] == "markdown" and line.startswith("|")
            assert table or len(prose) <= 88, f"cell {number}: {line}"


@each_notebook
def test_nothing_is_installed_and_nobody_is_asked(path: Path) -> None:
    for cell in cells(path, "code"):
        for forbidden in ("pip install", "chdir", "sys.path", "input(", "%pip", "!pip"):
            assert forbidden not in source(cell)


@each_notebook
def test_every_picture_is_told_in_words(path: Path) -> None:
    for words in re.findall(r"!\[([^\]]*)\]\(", text(path)):
        assert len(words.split()) >= 8, f"too few words for who cannot see it: {words!r}"
    for tag in re.findall(r"<img[^>]*>", text(path)):
        assert re.search(r'alt="[^"]{30,}"', tag)


@each_notebook
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", text(path))
    targets += re.findall(r'(?:src|href)="([^"]+)"', text(path))
    for target in targets:
        if not re.match(r"https://|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{target} is not there"


@each_notebook
def test_every_cell_was_run_in_order_and_none_failed(path: Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source(cell)
            assert output.get("name") != "stderr", f"a warning was saved: {source(cell)}"


@each_notebook
def test_only_cells_that_show_times_go_uncompared(path: Path) -> None:
    skipped = []
    for cell in cells(path, "code"):
        tags = cell["metadata"].get("tags", [])
        assert "NBVAL" not in source(cell), "tags say it, where no reader trips over them"
        assert not any(tag.startswith("nbval") and tag != TIMING_TAG for tag in tags)
        if TIMING_TAG in tags:
            skipped.append(source(cell).splitlines()[0])
    assert skipped == TIMING_CELLS.get(path.stem, [])


@each_notebook
def test_the_notebook_says_nothing_of_the_machine_it_was_run_on(path: Path) -> None:
    metadata = read(path)["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata or "state" in json.dumps(metadata["widgets"])
    assert set(metadata["language_info"]) <= {"name"}, "a Python version would be compared by eye"
    for cell in cells(path, "code"):
        assert "execution" not in cell["metadata"], "times of execution change with every run"
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_questions_to_recall_have_answers(path: Path) -> None:
    folded = re.findall(
        r"<details><summary>\d+\. .+?\?</summary>.+?</details>", text(path), re.DOTALL
    )
    assert len(folded) == 10


@each_notebook
def test_shapes_of_the_series_are_all_there(path: Path) -> None:
    for heading in ("## Recap", "## Reading", "## What comes next"):
        assert heading in text(path)
    assert text(path).count("> **Predict.**") >= 1


def test_the_map_of_the_series_knows_which_notebooks_are_there() -> None:
    """A new notebook is linked in the table at the end of the first one."""
    rows = re.findall(r"^\| (?:\[)?(\d\d_\w+)(\]\(\S+\))? \| .+ \| (.+) \|$", text(FIRST), re.M)
    assert len(rows) == 18
    here = {path.stem for path in NOTEBOOKS}
    for name, link, state in rows:
        if name == FIRST.stem:
            assert state == "you are here"
        elif name in here:
            assert state == "yes" and link == f"]({name}.ipynb)", f"link {name} in the map"
        else:
            assert state == "not yet" and not link, f"{name} is not there"
    assert here <= {name for name, _, _ in rows}


def test_the_picture_at_the_top_is_the_one_that_the_notebook_draws() -> None:
    kept = (REPO / "assets" / "continuous_batching.svg").read_text(encoding="utf-8")
    (drawn,) = [
        "".join(output["data"]["image/svg+xml"])
        for cell in cells(FIRST, "code")
        if source(cell).endswith("story_svg(engine.log, step=9)")
        for output in cell["outputs"]
    ]
    assert kept == drawn
