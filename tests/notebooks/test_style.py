"""What a program can see of the notebooks' style: sizes, the top, links, pictures, exercises.

Each test takes a path, so that test_style_itself can hold it against broken copies.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from paged_engine.lessons.bug_hunts import find_hunt
from paged_engine.visualizer.page import style_sheet, widget_module
from paged_engine.visualizer.static import WIDTH
from tests.notebooks.lesson import NOTEBOOKS, REPO, Cell, cells_of, facts_of, solutions_of

FOLDER = REPO / "notebooks"
FIRST = FOLDER / "00_start_here.ipynb"
SOLUTIONS = REPO / "paged_engine" / "lessons" / "solutions"
TIMING_TAG = "nbval-ignore-output"
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
MOST_STATE = 300_000  # bytes
CALLOUTS = {"Predict", "Watch out", "In vLLM", "Aside"}
FEWEST_WORDS = 8  # that tell a picture
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(path: Path) -> list[Cell]:
    return [cell for cell in cells_of(path) if cell.kind == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in cells_of(path) if cell.kind == "markdown")


def prose(path: Path) -> str:
    """Markdown without the code in it, which is that of solutions."""
    return FENCED.sub("", markdown(path))


def number_of(path: Path) -> str:
    return path.stem[:2]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_is_a_first_notebook() -> None:
    assert FIRST in NOTEBOOKS


# The top, and sizes ------------------------------------------------------------------------------


@each_notebook
def test_the_first_line_is_a_question_and_a_box_follows(path: Path) -> None:
    top = cells_of(path)[0].source
    assert re.fullmatch(r"# .+\?", top.splitlines()[0])
    for word in ("Minutes", "Before this", "GPU", "Downloads"):
        assert f"**{word}**" in top, f"the box says nothing of {word}"


@each_notebook
def test_the_result_comes_before_the_first_code(path: Path) -> None:
    before = []
    for cell in cells_of(path):
        if cell.kind == "code":
            break
        before.append(cell.source)
    assert "![" in "".join(before) or "```" in "".join(before)


@each_notebook
def test_a_notebook_can_be_read_in_a_sitting(path: Path) -> None:
    code = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert 40 <= len(cells_of(path)) <= 80
    assert median(code) <= 8 and max(code) <= 30
    assert sum(code) <= 350
    words = re.sub(r"^\|.*$", "", prose(path), flags=re.MULTILINE)  # nobody reads tables through
    assert 1_000 <= len(words.split()) <= 2_500


@each_notebook
def test_no_line_is_too_long(path: Path) -> None:
    for cell in cells_of(path):
        for line in cell.source.splitlines():
            without = re.sub(r"\]\([^)]*\)", "]", line)  # an address cannot be broken
            table = cell.kind == "markdown" and line.startswith("|")
            assert table or len(without) <= 88, f"cell {cell.number}: {line}"


@each_notebook
def test_shapes_of_the_series_are_all_there(path: Path) -> None:
    for heading in ("## Recap", "## Reading", "## What comes next"):
        assert heading in markdown(path)
    assert markdown(path).count("> **Predict.**") >= 1
    recap = markdown(path).split("## Recap")[1].split("\n#")[0]
    assert re.findall(r"^(\d+)\. ", recap, re.MULTILINE) == list("12345"), "five sentences"


@each_notebook
def test_questions_to_recall_have_answers(path: Path) -> None:
    folded = re.findall(
        r"<details><summary>(\d+)\. .+?\?</summary>.+?</details>", markdown(path), re.DOTALL
    )
    assert folded == [str(number) for number in range(1, 11)]


@each_notebook
def test_there_are_four_kinds_of_callouts(path: Path) -> None:
    for cell in cells_of(path)[1:]:
        if cell.kind == "markdown":
            found = re.findall(r"^> \*\*([^*]+?)\.?\*\*", cell.source, re.MULTILINE)
            assert set(found) <= CALLOUTS, f"cell {cell.number}: {found}"


# Code --------------------------------------------------------------------------------------------


@each_notebook
def test_nothing_is_installed_and_nobody_is_asked(path: Path) -> None:
    forbidden = ("pip install", "chdir", "sys.path", "input(", "clear_output", "tqdm", "interact(")
    for cell in code_cells(path):
        for words in forbidden:
            assert words not in cell.source, f"cell {cell.number} has {words}"


@each_notebook
def test_code_is_python_and_nothing_else(path: Path) -> None:
    """No magics: the cells also run as one program."""
    for cell in code_cells(path):
        ast.parse(cell.source, f"cell {cell.number}")


@each_notebook
def test_every_guess_is_optional_asked_for_and_compared(path: Path) -> None:
    code = "\n".join(cell.source for cell in code_cells(path))
    made: dict[str, bool] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            call, (target,) = node.value, node.targets
            if isinstance(call.func, ast.Name) and call.func.id == "predict":
                assert isinstance(target, ast.Name)
                _, answer = call.args
                assert isinstance(answer, ast.Constant) and answer.value is None, target.id
                made[target.id] = f"{target.id}.compare(" in code
    assert made and all(made.values()), f"compared: {made}"
    assert markdown(path).count("> **Predict.**") == len(made), "one callout for each predict()"
    assert code.count("predict(") == len(made), "each predict() gets a name to be compared by"


@each_notebook
def test_every_cell_was_run_in_order_and_none_failed(path: Path) -> None:
    code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output["output_type"] != "error", cell.source
            assert output.get("name") != "stderr", f"a warning was saved: {cell.source}"


@each_notebook
def test_only_cells_that_show_times_go_uncompared(path: Path) -> None:
    skipped = []
    for cell in code_cells(path):
        assert "NBVAL" not in cell.source, "tags say it, where no reader trips over them"
        assert not any(tag.startswith("nbval") and tag != TIMING_TAG for tag in cell.tags)
        if TIMING_TAG in cell.tags:
            skipped.append(cell.source.splitlines()[0])
    assert skipped == getattr(facts_of(path), "TIMING_CELLS", [])


# Pictures, links and outputs ---------------------------------------------------------------------


@each_notebook
def test_every_picture_is_told_in_words(path: Path) -> None:
    for words in re.findall(r"!\[([^\]]*)\]\(", prose(path)):
        assert len(words.split()) >= FEWEST_WORDS, f"too few words: {words!r}"
    for tag in re.findall(r"<img[^>]*>", prose(path)):
        assert re.search(r'alt="[^"]{30,}"', tag)


@each_notebook
def test_no_drawing_is_cut_on_a_small_screen(path: Path) -> None:
    """JupyterLab shrinks a PNG that is too wide, and cuts an SVG."""
    for cell in cells_of(path):
        for output in cell.outputs:
            drawing = "".join(output.get("data", {}).get("image/svg+xml", ""))
            if drawing:
                size = re.search(r'<svg[^>]*?\bwidth="([\d.]+)(pt|px)?"', drawing)
                assert size, f"cell {cell.number}: a drawing without a width"
                pixels = float(size[1]) * (96 / 72 if size[2] == "pt" else 1)
                assert pixels <= WIDTH, f"cell {cell.number}: {pixels:.0f} pixels wide"


@each_notebook
def test_every_picture_that_code_draws_is_told_in_words(path: Path) -> None:
    """A live view has a picture in the Markdown above it instead."""
    cells = cells_of(path)
    for cell in cells:
        for output in cell.outputs:
            data = output.get("data", {})
            if WIDGET in data:
                above = cells[max(0, cell.number - 3) : cell.number]
                assert any("![" in c.source for c in above if c.kind == "markdown"), cell.source
            elif {"image/svg+xml", "image/png"} & set(data):
                words = "".join(data.get("text/plain", ""))
                assert len(words.split()) >= FEWEST_WORDS, f"{words!r} of cell {cell.number}"


@each_notebook
def test_outputs_can_be_read_and_compared(path: Path) -> None:
    for cell in code_cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            assert "text/html" not in data or set(data) - {"text/html"}, "HTML is not all there is"
            said = "".join(data.get("text/plain", "")) + "".join(output.get("text", ""))
            assert not re.search(r"\b0x[0-9a-f]{6,}", said), f"an address: {said}"


@each_notebook
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    targets += re.findall(r'(?:src|href)="([^"]+)"', prose(path))
    for target in targets:
        if not re.match(r"https://|#", target):
            assert (FOLDER / target.split("#")[0]).exists(), f"{target} is not there"


@each_notebook
def test_a_drawing_beside_the_notebook_is_one_that_it_draws(path: Path) -> None:
    drawn = [
        "".join(output["data"]["image/svg+xml"]).strip()
        for cell in code_cells(path)
        for output in cell.outputs
        if "image/svg+xml" in output.get("data", {})
    ]
    for target in re.findall(r"\]\(([^)\s]+\.svg)\)", prose(path)):
        kept = (FOLDER / target).read_text(encoding="utf-8").strip()
        assert kept in drawn, f"{target} is not what a cell of the notebook draws"


def test_no_picture_is_left_over() -> None:
    linked = "\n".join(markdown(path) for path in NOTEBOOKS)
    for file in (REPO / "assets" / "notebooks").iterdir():
        assert f"../assets/notebooks/{file.name}" in linked, f"no notebook shows {file.name}"


@each_notebook
def test_the_notebook_says_nothing_of_the_machine_it_was_run_on(path: Path) -> None:
    notebook = read(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]["language_info"]) <= {"name"}, "a Python version would differ"
    for cell in notebook["cells"]:
        assert "execution" not in cell["metadata"], "times of execution change with every run"
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_a_view_is_saved_with_its_run_and_with_the_javascript_of_today(path: Path) -> None:
    widgets = read(path)["metadata"].get("widgets")
    state = {} if widgets is None else widgets[STATE]["state"]
    assert widgets is None or state, "GitHub calls a notebook invalid that has widgets and no state"
    assert len(json.dumps(state)) < MOST_STATE
    shown = [
        output["data"][WIDGET]["model_id"]
        for cell in code_cells(path)
        for output in cell.outputs
        if WIDGET in output.get("data", {})
    ]
    named = re.findall(r"IPY_MODEL_(\w+)", json.dumps(state))  # by another, as its layout
    assert set(shown) | set(named) <= set(state), "a view without state is an error in JupyterLab"
    for name in shown:
        saved = state[name]
        kept = (saved["state"]["_esm"], saved["state"]["_css"])
        is_of_today = kept == (widget_module(), style_sheet())
        assert is_of_today, "the view has changed since: execute the notebook again"
        assert [buffer["path"] for buffer in saved["buffers"]] == [["saved"]]


# Exercises and bug hunts -------------------------------------------------------------------------


def exercises_of(path: Path) -> list[str]:
    return [name for cell in cells_of(path) if (name := cell.tagged("exercise"))]


@each_notebook
def test_there_is_something_to_do(path: Path) -> None:
    """From notebook 01 on: an exercise and a bug hunt at least."""
    names, number = exercises_of(path), number_of(path)
    assert names == [f"{number}.{i}" for i in range(1, len(names) + 1)]
    if number == "00":
        return
    assert names, "no exercise"
    assert [cell.tagged("hunt") for cell in cells_of(path) if cell.tagged("hunt")], "no bug hunt"


@each_notebook
def test_an_exercise_is_task_stub_check_and_solution(path: Path) -> None:
    cells = cells_of(path)
    for stub in cells:
        name = stub.tagged("exercise")
        if name is None:
            continue
        task, check, solution = (cells[stub.number + i] for i in (-1, 1, 2))
        assert [c.kind for c in (task, stub, check, solution)] == [
            "markdown", "code", "code", "markdown",
        ], f"{name} is not four cells in order"  # fmt: skip
        assert check.tagged("check") == solution.tagged("solution") == name
        assert f'check("{name}", ' in check.source
        said = " ".join(task.source.split())
        assert re.search(r"\b(easy|medium|hard)\b", said, re.I), f"{name}: how difficult is it?"
        assert re.search(r"\d+ minutes", said), f"{name}: how many minutes?"
        assert re.search(r"about \d+ lines?\b", said), f"{name}: about how many lines?"


@each_notebook
def test_a_hint_comes_before_the_solution(path: Path) -> None:
    for cell in cells_of(path):
        if name := cell.tagged("solution"):
            folded = re.findall(r"<details><summary>(\w+)</summary>", cell.source)
            assert folded == ["Hint", "Solution"], f"{name} has {folded}"
            assert cell.source.count("</details>") == 2


@each_notebook
def test_a_stub_asks_for_what_the_solution_gives(path: Path) -> None:
    """The same names, and functions with the same parameters."""
    cells = cells_of(path)
    stubs = {name: cell.source for cell in cells if (name := cell.tagged("exercise"))}
    for name, solution in solutions_of(cells).items():
        for place, signature in signatures(stubs[name]).items():
            given = signatures(solution).get(place)
            assert given == signature, f"{name}: {place} is {given} in the solution"


@each_notebook
def test_a_solution_is_that_of_the_package(path: Path) -> None:
    """Function by function, as text, so that what readers see is what the tests run."""
    solutions = solutions_of(cells_of(path))
    if not solutions:
        return
    file = SOLUTIONS / f"nb{number_of(path)}.py"
    kept = definitions(file.read_text(encoding="utf-8"))
    for name, code in solutions.items():
        given = definitions(code)
        for place, text in given.items():
            methods = [other for other in given if other.startswith(f"{place}.")]
            if kept.get(place) != text:  # a class may grow later: then its methods are compared
                assert methods, f"{name}: {place} is not that of {file.name}"


@each_notebook
def test_a_bug_hunt_has_suspects_a_trace_and_an_answer(path: Path) -> None:
    cells, code = cells_of(path), "\n".join(cell.source for cell in code_cells(path))
    for cell in cells:
        number = cell.tagged("hunt")
        if number is None:
            continue
        assert number.rstrip("bc") == number_of(path)  # a second hunt of 09 is 09b
        assert f'suspects("{number}")' in code and f'with bug("{number}"):' in code
        assert f'accuse("{number}", None)' in cell.source
        after = "".join(c.source for c in cells[cell.number + 1 : cell.number + 3])
        (letter,) = re.findall(
            r"<details><summary>Answer</summary>.*?The answer is \*\*([A-Z])\*\*", after, re.DOTALL
        )
        assert letter == find_hunt(number).guilty, "the answer in the text is another"


def definitions(code: str) -> dict[str, str]:
    """The text of each function and class, and of each method as "Class.method".

    A function under `@add_to_class(Class)` is a method of it.
    """
    found: dict[str, str] = {}
    lines = code.splitlines()

    def text_of(node: ast.FunctionDef | ast.ClassDef, *, bare: bool = False) -> str:
        first = (
            node.lineno if bare else min([node.lineno, *(d.lineno for d in node.decorator_list)])
        )
        return textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno])).strip()

    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            if owner := grown_into(node):
                found[f"{owner}.{node.name}"] = text_of(node, bare=True)
            else:
                found[node.name] = text_of(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = text_of(node)
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{node.name}.{method.name}"] = text_of(method)
    return found


def signatures(code: str) -> dict[str, str]:
    """For each function its parameters; for each name that is given a value, "a value"."""
    found: dict[str, str] = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            owner = grown_into(node)
            place = f"{owner}.{node.name}" if owner else node.name
            found[place] = ast.unparse(node.args)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "a class"
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{node.name}.{method.name}"] = ast.unparse(method.args)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = "a value"
    return found


def grown_into(node: ast.FunctionDef) -> str:
    """The class that a function is made a method of."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "add_to_class":
            return ast.unparse(decorator.args[0])
    return ""


# Notebook 00 -------------------------------------------------------------------------------------


def test_the_map_of_the_series_knows_which_notebooks_are_there() -> None:
    """A new notebook is linked in the table at the end of the first one."""
    rows = re.findall(r"^\| (?:\[)?(\d\d_\w+)(\]\(\S+\))? \| .+ \| (.+) \|$", prose(FIRST), re.M)
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


def test_the_first_notebook_opens_with_the_live_view() -> None:
    """In the first third, and no later cell touches its engine."""
    cells = code_cells(FIRST)
    (at,) = [i for i, cell in enumerate(cells) if "EngineView(live)" in cell.source]
    assert at < len(cells) / 3 and cells[at].source.endswith("\nview")
    assert cells[at + 1].source == "view.play()"
    for cell in cells[at + 2 :]:
        assert not re.search(r"\b(live|view)\b", cell.source), "a view owns its engine"
