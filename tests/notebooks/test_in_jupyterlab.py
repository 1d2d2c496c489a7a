"""Every notebook opened and run in a real JupyterLab: no error, neither in a cell nor in the page.

The strict run of nbval compares outputs without a page; this one sees what a reader's page sees,
live views included, and those that were saved and not run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.conftest import browser as browser  # the same browser fixture
from tests.browser.lab import REPO, Lab, Notebook
from tests.notebooks.execute import WIDGET_STATE
from tests.notebooks.lesson import NOTEBOOKS

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

LONGEST = 180_000  # milliseconds for a notebook
# Said by JupyterLab itself, about itself.
NOT_OURS = ("favicon", "ResizeObserver loop", "/api/", "lab/extensions", "the server responded")

ENDED = """() => {
    const cells = jupyterapp.shell.currentWidget.content.widgets;
    const code = cells.filter((cell) => cell.model.type === "code");
    return code.length && code.every((cell) => cell.model.executionState === "idle" &&
        (cell.model.executionCount !== null || !cell.model.sharedModel.source.trim()));
}"""
CLEAR = "() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
OUTPUTS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter((cell) => cell.model.type === "code")
    .map((cell) => cell.model.outputs.toJSON()
        .filter((o) => o.output_type === "error" || o.name === "stderr")
        .map((o) => o.ename || o.text)).flat()"""
VIEWS = """() => [...document.querySelectorAll('[data-testid="engine-view"]')]
    .map((root) => [root.view.history.length, root.view.state.error])"""

WITH_VIEWS = [
    path for path in NOTEBOOKS if WIDGET_STATE in nbformat.read(path, 4).metadata.get("widgets", {})
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("series")
    shutil.copytree(REPO / "notebooks", root / "notebooks")
    shutil.copytree(REPO / "assets", root / "assets", ignore=shutil.ignore_patterns("*.gif"))
    server = Lab(root, tmp_path_factory.mktemp("private"))
    yield server
    server.close()


def problems_of(name: str, lab: Lab, browser: Any) -> list[str]:
    """Open a notebook, run all of it, and say what went wrong."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    said: list[str] = []
    page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    try:
        notebook = Notebook(lab, page, f"notebooks/{name}")
        page.evaluate(CLEAR)
        said.clear()  # of the saved state, before anything ran
        notebook.run_all()
        page.wait_for_function(ENDED, timeout=LONGEST)
        views = [error for frames, error in page.evaluate(VIEWS) if error or not frames]
        own = [line for line in said if not any(known in line for known in NOT_OURS)]
        problems: list[str] = [*page.evaluate(OUTPUTS), *views, *notebook.errors, *own]
        return problems
    finally:
        page.close()
        lab.end_sessions()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_jupyterlab_without_an_error(path: Path, lab: Lab, browser: Any) -> None:
    assert problems_of(path.name, lab, browser) == []


def test_an_error_and_a_warning_are_seen(lab: Lab, browser: Any) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    sources = ["import sys\nprint('careful', file=sys.stderr)", "1 / 0"]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, lab.folder / "notebooks" / "broken.ipynb")
    problems = problems_of("broken.ipynb", lab, browser)
    assert [problem.strip() for problem in problems[:2]] == ["careful", "ZeroDivisionError"]


SHOWING = """() => jupyterapp.shell.currentWidget.content.widgets
    .map((cell, index) => [cell.model, index])
    .filter(([model]) => model.type === "code" && model.outputs.toJSON()
        .some((output) => output.data && "application/vnd.jupyter.widget-view+json" in output.data))
    .map(([_, index]) => index)"""
SEEN = """async ([index, dark]) => {
    await jupyterapp.shell.currentWidget.content.scrollToItem(index, "start");
    const cell = jupyterapp.shell.currentWidget.content.widgets[index].node;
    const until = performance.now() + 60_000;
    const next = () => new Promise((done, fail) => performance.now() < until
        ? requestAnimationFrame(done) : fail(new Error("the view does not come")));
    const find = () => cell.querySelector('[data-testid="engine-view"]')?.view;
    while (!find()?.shown?.step || find().root.classList.contains("pe-dark") !== dark) await next();
    const view = find(), drawn = view.drawn;
    view.wake();
    while (view.drawn === drawn || !view.theme) await next(); // for a while it is read anew
    const { free } = view.theme;
    const { ref, hash } = view.shown;
    const block = ref.findIndex((held, b) => !held && !hash.has(b)); // a free one
    const [x, y] = view.blocks.place(block);
    const canvas = view.blocks.canvas, middle = view.blocks.grid.cell / 2;
    const scale = canvas.width / canvas.clientWidth;
    const c = canvas.getContext("2d");
    const pixel = c.getImageData((x + middle) * scale, (y + middle) * scale, 1, 1).data;
    c.fillStyle = free; // as the browser writes it
    const [r, g, b] = pixel;
    return [view.state.live, view.history.length > 0, block, c.fillStyle,
        "#" + [r, g, b].map((part) => part.toString(16).padStart(2, "0")).join("")];
}"""


@pytest.mark.parametrize("path", WITH_VIEWS, ids=lambda path: path.stem)
def test_a_view_that_was_saved_is_shown_without_running_a_cell(
    path: Path, lab: Lab, browser: Any
) -> None:
    """As the notebook's author sees it on the next day: widgets are shown to who trusts them."""
    lab.trust(lab.folder / "notebooks" / path.name)
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    try:
        notebook = Notebook(lab, page, f"notebooks/{path.name}", kernel=False)
        cells = page.evaluate(SHOWING)
        assert cells
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            notebook.theme(theme)
            for cell in cells:
                live, has_frames, block, free, pixel = page.evaluate(SEEN, [cell, "Dark" in theme])
                assert not live and has_frames and block >= 0
                assert pixel == free != "#000000"
        assert notebook.errors == []
    finally:
        notebook.theme("JupyterLab Light")
        page.close()
        lab.end_sessions()
