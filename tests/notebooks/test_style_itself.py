"""The tests of style hold for a notebook that keeps to it, and fail for each way of breaking it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paged_engine.visualizer.page import style_sheet, widget_module
from tests.notebooks import test_style as style
from tests.notebooks.test_style import STATE, WIDGET

Json = dict[str, Any]
ID = f"{1:032x}"
SVG = '<svg width="600pt">drawn</svg>'
WORDS = "a line that rises from one to eight tokens"
TOP = """# Why is this one here?

> **Minutes** 30 · **Before this** nothing · **GPU** no · **Downloads** nothing

![a picture that is told in more than eight words, as all are](../assets/series_map.svg)
"""
TASK = "**Exercise 98.1.** Write it. Difficulty: easy, 5 minutes, about 3\nlines."
STUB = "def add(a, b):\n    ..."
SOLUTION = "def add(a, b):\n    return a + b"
FOLDED = f"""<details><summary>Hint</summary>

Think of sums.
</details>
<details><summary>Solution</summary>

```python
{SOLUTION}
```

</details>"""
ANSWER = """<details><summary>Answer</summary>

The answer is **B**.
</details>"""
RECAP = "## Recap\n\n" + "\n".join(f"{n}. It is so." for n in range(1, 6))
RECALL = "\n".join(f"<details><summary>{n}. Why?</summary>Because.</details>" for n in range(1, 11))
END = "## Reading\n\n[A paper](https://arxiv.org/abs/2309.06180).\n\n## What comes next\n\nMore."
FILLER = "These are the words of a paragraph that somebody reads. " * 4


def md(source: str, *tags: str) -> Json:
    return {"cell_type": "markdown", "source": source, "metadata": {"tags": list(tags)}}


def code(source: str, *tags: str, output: Json | None = None) -> Json:
    outputs = [] if output is None else [{"output_type": "execute_result", "data": output}]
    return {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": list(tags)},
        "outputs": outputs,
        "execution_count": 0,
    }


def sample() -> Json:
    """A notebook that keeps to the style."""
    cells = [
        md(TOP),
        md("> **Predict.** How many?"),
        code('many = predict("how many?", None)'),
        code("figure", output={"image/svg+xml": SVG, "text/plain": WORDS}),
        code('many.compare(3, "so it is")'),
        md("![the view of a run of three requests over eleven steps](../assets/live_light.png)"),
        code("view", output={WIDGET: {"model_id": ID}, "text/plain": "EngineView(blocks)"}),
        md(TASK),
        code(STUB, "exercise:98.1"),
        code('check("98.1", add)', "check:98.1"),
        md(FOLDED, "solution:98.1"),
        code('suspects("98")'),
        code('with bug("98"):\n    run()'),
        code('accuse("98", None)', "hunt:98"),
        md(ANSWER),
        *(md("\n".join([FILLER.strip()[:86]] * 4)) for _ in range(22)),
        md(RECAP),
        md(RECALL),
        md(END),
    ]
    count = 0
    for cell in cells:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
    widget = {
        "state": {"_esm": widget_module(), "_css": style_sheet()},
        "buffers": [{"path": ["saved"], "data": ""}],
    }
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"name": "python3"},
            "language_info": {"name": "python"},
            "widgets": {STATE: {"state": {ID: widget}}},
        },
    }


def cell_with(notebook: Json, words: str) -> Json:
    (cell,) = [cell for cell in notebook["cells"] if words in cell["source"]]
    assert isinstance(cell, dict)
    return cell


def replace(old: str, new: str) -> Callable[[Json], None]:
    """In the one cell that has it."""

    def change(notebook: Json) -> None:
        cell = cell_with(notebook, old)
        cell["source"] = cell["source"].replace(old, new)

    return change


def swap(one: str, other: str) -> Callable[[Json], None]:
    """Two cells, by their tags."""

    def change(notebook: Json) -> None:
        cells = notebook["cells"]
        i, j = (
            next(n for n, c in enumerate(cells) if tag in c["metadata"]["tags"])
            for tag in (one, other)
        )
        cells[i], cells[j] = cells[j], cells[i]

    return change


def untag(tag: str) -> Callable[[Json], None]:
    def change(notebook: Json) -> None:
        for cell in notebook["cells"]:
            cell["metadata"]["tags"] = [t for t in cell["metadata"]["tags"] if t != tag]

    return change


def drop(words: str) -> Callable[[Json], None]:
    def change(notebook: Json) -> None:
        notebook["cells"].remove(cell_with(notebook, words))

    return change


def output_of(words: str, **changes: Any) -> Callable[[Json], None]:
    """Change or, with None, take away what the output of a cell has; "_" stands for "/"."""

    def change(notebook: Json) -> None:
        for cell in notebook["cells"]:
            if cell["source"] == words:
                data = cell["outputs"][0]["data"]
                for name, value in changes.items():
                    data[name.replace("_", "/")] = value
                for name in [n for n, v in data.items() if v is None]:
                    del data[name]

    return change


def widget(**changes: Any) -> Callable[[Json], None]:
    def change(notebook: Json) -> None:
        notebook["metadata"]["widgets"][STATE]["state"][ID]["state"].update(changes)

    return change


def no_state(notebook: Json) -> None:
    notebook["metadata"]["widgets"] = {STATE: {"state": {}}}


def no_widgets(notebook: Json) -> None:
    del notebook["metadata"]["widgets"]


def no_run(notebook: Json) -> None:
    notebook["metadata"]["widgets"][STATE]["state"][ID]["buffers"] = []


def run_twice(notebook: Json) -> None:
    cell_with(notebook, "suspects(")["execution_count"] = 40


def stderr(notebook: Json) -> None:
    said = {"output_type": "stream", "name": "stderr", "text": "careful"}
    cell_with(notebook, "suspects(")["outputs"] = [said]


def skip_comparison(notebook: Json) -> None:
    cell_with(notebook, "suspects(")["metadata"]["tags"] = [style.TIMING_TAG]


def machine(notebook: Json) -> None:
    notebook["metadata"]["language_info"]["version"] = "3.11.7"


BROKEN: dict[str, list[Callable[[Json], None]]] = {
    "test_the_first_line_is_a_question_and_a_box_follows": [
        replace("here?", "here."),
        replace("**GPU**", "GPU"),
    ],
    "test_the_result_comes_before_the_first_code": [replace("![a picture", "[a picture")],
    "test_a_notebook_can_be_read_in_a_sitting": [
        replace("figure", "x = 1\n" * 31),
        drop("suspects("),
        replace("More.", "more " * 2_000),
    ],
    "test_no_line_is_too_long": [replace("More.", "m" * 89)],
    "test_shapes_of_the_series_are_all_there": [
        replace("## Reading", "## Books"),
        replace("5. It is so.", "It is so."),
    ],
    "test_questions_to_recall_have_answers": [replace("7. Why?", "Why?")],
    "test_there_are_four_kinds_of_callouts": [replace("More.", "> **Note.** More.")],
    "test_nothing_is_installed_and_nobody_is_asked": [replace("figure", "input()")],
    "test_code_is_python_and_nothing_else": [replace("figure", "%matplotlib inline")],
    "test_every_guess_is_optional_asked_for_and_compared": [
        replace('?", None)', '?", 3)'),
        drop("many.compare"),
        drop("> **Predict.**"),
        replace("many = predict", "predict"),
    ],
    "test_every_cell_was_run_in_order_and_none_failed": [run_twice, stderr],
    "test_only_cells_that_show_times_go_uncompared": [skip_comparison],
    "test_every_picture_is_told_in_words": [replace("the view of a run of three", "run")],
    "test_no_drawing_is_cut_on_a_small_screen": [
        output_of("figure", **{"image_svg+xml": '<svg width="640pt">drawn</svg>'}),
        output_of("figure", **{"image_svg+xml": '<svg width="841">drawn</svg>'}),
        output_of("figure", **{"image_svg+xml": "<svg>drawn</svg>"}),
    ],
    "test_every_picture_that_code_draws_is_told_in_words": [
        output_of("figure", text_plain="<Figure size 640x480 with 1 Axes>"),
        drop("live_light.png"),
    ],
    "test_outputs_can_be_read_and_compared": [
        output_of("figure", text_plain="<A object at 0x7f00aa11bb22>"),
        output_of("figure", text_html="<b>", text_plain=None, **{"image_svg+xml": None}),
    ],
    "test_every_relative_link_leads_somewhere": [replace("../assets/live_light", "../gone")],
    "test_a_drawing_beside_the_notebook_is_one_that_it_draws": [
        output_of("figure", **{"image_svg+xml": "<svg>another</svg>"}),
    ],
    "test_the_notebook_says_nothing_of_the_machine_it_was_run_on": [machine],
    "test_a_view_is_saved_with_its_run_and_with_the_javascript_of_today": [
        no_state,
        no_widgets,
        no_run,
        widget(_esm="old"),
        widget(_css="old"),
        widget(layout=f"IPY_MODEL_{2:032x}"),
        widget(about="x" * style.MOST_STATE),
    ],
    "test_there_is_something_to_do": [
        untag("exercise:98.1"),
        untag("hunt:98"),
    ],
    "test_an_exercise_is_task_stub_check_and_solution": [
        swap("check:98.1", "solution:98.1"),
        swap("check:98.1", "hunt:98"),
        untag("check:98.1"),
        replace("Difficulty: easy", "Not long"),
        replace("5 minutes", "soon"),
        replace("about 3\nlines", "short"),
    ],
    "test_a_hint_comes_before_the_solution": [replace(">Hint<", ">Help<")],
    "test_a_stub_asks_for_what_the_solution_gives": [
        replace("add(a, b):\n    ...", "add(a):\n    ..."),
        replace("def add(a, b):\n    ...", "total = None"),
    ],
    "test_a_solution_is_that_of_the_package": [replace("return a + b", "return b + a")],
    "test_a_bug_hunt_has_suspects_a_trace_and_an_answer": [
        replace("**B**", "**C**"),
        replace('accuse("98", None)', 'accuse("98", "A")'),
        drop('with bug("98")'),
        drop('suspects("98")'),
    ],
}
EACH = [(name, number) for name, changes in BROKEN.items() for number in range(len(changes))]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Json], Path]:
    """Where a notebook lies with what belongs to it."""
    for folder, file, text in (
        ("solutions", "nb98.py", f'"""Solutions."""\n\n\n{SOLUTION}\n'),
        ("assets", "series_map.svg", f"{SVG}\n"),
        ("assets", "live_light.png", ""),
        ("notebooks", "98_sample.ipynb", ""),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(style, "FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr(style, "SOLUTIONS", tmp_path / "solutions")
    monkeypatch.setattr(style, "find_hunt", lambda number: SimpleNamespace(guilty="B"))

    def write(notebook: Json) -> Path:
        path = tmp_path / "notebooks" / "98_sample.ipynb"
        path.write_text(json.dumps(notebook), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", BROKEN)
def test_a_notebook_that_keeps_to_the_style_passes(
    name: str, written: Callable[[Json], Path]
) -> None:
    getattr(style, name)(written(sample()))


@pytest.mark.parametrize(("name", "number"), EACH)
def test_a_broken_copy_is_seen(name: str, number: int, written: Callable[[Json], Path]) -> None:
    notebook = sample()
    BROKEN[name][number](notebook)
    assert notebook != sample(), "nothing was broken"
    with pytest.raises((AssertionError, SyntaxError, ValueError)):
        getattr(style, name)(written(notebook))


def test_every_rule_for_each_notebook_is_tried() -> None:
    rules = {
        name
        for name, value in vars(style).items()
        if name.startswith("test_") and getattr(value, "pytestmark", [])
    }
    assert rules == set(BROKEN)


ONE = "class A:\n    def f(self):\n        return 1"
TWO = "\n\n    def g(self):\n        return 2"
GROWN = "@add_to_class(A)\ndef f(self):\n    return 1"


@pytest.mark.parametrize(
    ("kept", "given", "is_right"),
    [
        (ONE, ONE, True),
        (ONE + TWO, ONE, True),
        (ONE, ONE.replace("1", "2"), False),
        (ONE, ONE + TWO, False),
        (ONE + TWO, GROWN, True),
        (ONE, GROWN.replace("1", "2"), False),
        ("import math\n\n\ndef f():\n    return 1", "def f():\n    return 1", True),
        ("def g():\n    return 1", "def f():\n    return 1", False),
        ("", "my_answer = 4", True),
    ],
)
def test_solutions_are_compared_function_by_function(
    kept: str, given: str, is_right: bool, written: Callable[[Json], Path]
) -> None:
    notebook = sample()
    replace(SOLUTION, given)(notebook)
    path = written(notebook)
    (style.SOLUTIONS / "nb98.py").write_text(kept, encoding="utf-8")
    if is_right:
        style.test_a_solution_is_that_of_the_package(path)
    else:
        with pytest.raises(AssertionError):
            style.test_a_solution_is_that_of_the_package(path)
