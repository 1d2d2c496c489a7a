"""The live view in a real JupyterLab in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.browser.lab import REPO, Lab, Notebook

pytestmark = pytest.mark.slow

VIEW = '[data-testid="engine-view"]'
SETUP = f"""\
from transformers import AutoTokenizer

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models import tiny
from paged_engine.visualizer import EngineView

tokenizer = AutoTokenizer.from_pretrained({str(REPO / "tests" / "gpu" / "tokenizer")!r})
config = EngineConfig(num_blocks=96, block_size=4, max_num_seqs=4, max_num_batched_tokens=24)
engine = ContinuousEngine(tiny(vocab_size=512), tokenizer, config)
for number, prompt in enumerate(["The sky is blue", "One two three four", "Paged attention"]):
    engine.add_request(prompt, SamplingParams(max_tokens=90 + 15 * number, ignore_eos=True))
view = EngineView(engine)
view"""
MARKDOWN = "## A run, live"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[tuple[Lab, Path]]:
    folder = tmp_path_factory.mktemp("notebooks")
    server = Lab(folder, tmp_path_factory.mktemp("private"))
    yield server, folder
    server.close()


@pytest.fixture
def opened(lab: tuple[Lab, Path], browser: Any) -> Iterator[Callable[..., Notebook]]:
    server, folder = lab
    contexts: list[Any] = []
    notebooks: list[Notebook] = []

    def open_notebook(*cells: str, name: str = "live.ipynb", **options: Any) -> Notebook:
        if cells:
            notebook = nbformat.v4.new_notebook()
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
            notebook.cells = [nbformat.v4.new_markdown_cell(MARKDOWN)]
            notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
            nbformat.write(notebook, folder / name)
        context = browser.new_context(viewport={"width": 1400, "height": 1100})
        contexts.append(context)
        notebooks.append(Notebook(server, context.new_page(), name, **options))
        return notebooks[-1]

    yield open_notebook
    for context in contexts:
        context.close()
    server.end_sessions()
    assert not any(notebook.errors for notebook in notebooks), [n.errors for n in notebooks]


def in_view(notebook: Notebook, script: str, which: int = 0) -> Any:
    """The value of an expression about the page's `view`."""
    return notebook.page.evaluate(
        f"() => {{ const view = document.querySelectorAll('{VIEW}')[{which}].view;"
        f" return {script}; }}"
    )


def wait_in_view(notebook: Notebook, condition: str, which: int = 0) -> None:
    notebook.page.wait_for_function(
        f"() => {{ const view = document.querySelectorAll('{VIEW}')[{which}]?.view;"
        f" return view && ({condition}); }}",
        timeout=60_000,
    )


def press(notebook: Notebook, name: str) -> None:
    notebook.page.click(f'{VIEW} >> [data-pe="{name}"]')


def steps(notebook: Notebook) -> int:
    return int(notebook.ask_kernel("len(engine.log.of_kind('step_ended'))"))


def test_a_reader_plays_pauses_steps_injects_aborts_and_picks(
    opened: Callable[..., Notebook],
) -> None:
    notebook = opened(SETUP)
    notebook.run_all()
    wait_in_view(notebook, "view.history.length > 0")
    notebook.page.select_option(f'{VIEW} >> [data-pe="speed"]', "20")
    press(notebook, "play")
    wait_in_view(notebook, "view.history.last.step > 4")
    drawn = in_view(notebook, "view.drawn")
    wait_in_view(notebook, f"view.drawn > {drawn} + 2")  # frames change while it decodes

    press(notebook, "play")
    wait_in_view(notebook, "!view.state.playing")
    frozen = steps(notebook)
    notebook.page.wait_for_timeout(300)
    assert steps(notebook) == frozen == in_view(notebook, "view.history.last.step")
    press(notebook, "step")
    wait_in_view(notebook, f"view.history.last.step === {frozen + 1}")
    assert steps(notebook) == frozen + 1

    press(notebook, "play")
    notebook.page.fill(f"{VIEW} >> input[name=prompt]", "And now this")
    notebook.page.fill(f"{VIEW} >> input[name=max]", "9")
    notebook.page.keyboard.press("Enter")
    wait_in_view(notebook, "view.history.last.requests[3]?.tokens.length > 0")
    at = notebook.ask_kernel("engine.log.of_kind('queued')[-1].step")
    assert at > frozen  # it came while the others decoded
    assert in_view(notebook, "view.history.last.requests[3].words") == "And now this"
    press(notebook, "play")
    wait_in_view(notebook, "!view.state.playing")
    notebook.page.click(f'{VIEW} >> [data-request="2"] .pe-abort')
    wait_in_view(notebook, "view.history.last.requests[2].status === 'abort'")

    table = in_view(notebook, "view.history.last.requests[1].table")
    x, y = in_view(notebook, f"view.blocks.place({table[0]})")
    notebook.page.click(f'{VIEW} >> [data-pe="blocks"]', position={"x": x + 3, "y": y + 3})
    notebook.page.wait_for_timeout(200)
    block, owner = notebook.ask_kernel("[view.picked_block, view.picked_request]")
    assert (block, owner) == (table[0], in_view(notebook, "view.history.last.requests[1].id"))
    assert block in notebook.ask_kernel(f"engine.snapshot().requests[{owner!r}].block_table")

    in_view(notebook, "view.goTo(3)")
    wait_in_view(notebook, "view.shown.step <= 3")
    assert steps(notebook) == in_view(notebook, "view.history.last.step")
    press(notebook, "live")
    press(notebook, "end")
    wait_in_view(notebook, "!view.state.playing && view.history.last.used === 0")
    assert not notebook.ask_kernel("engine.has_unfinished")


def test_two_views_of_one_engine_show_the_same(opened: Callable[..., Notebook]) -> None:
    notebook = opened(SETUP, "other = EngineView(engine, parts=['blocks', 'lanes'])\nother")
    notebook.run_all()
    wait_in_view(notebook, "view.history.length > 0", which=1)
    press(notebook, "play")
    wait_in_view(notebook, "view.history.last.step > 8", which=1)
    press(notebook, "play")
    for which in (0, 1):
        wait_in_view(notebook, "!view.state.playing", which)
    state = "view.history.plainAt(100000)"
    assert in_view(notebook, state, 0) == in_view(notebook, state, 1)


def test_after_a_reload_the_view_shows_the_run_again(opened: Callable[..., Notebook]) -> None:
    notebook = opened(SETUP, "for _ in range(12):\n    view.step()")
    notebook.run_all()
    wait_in_view(notebook, "view.history.last.step === 12")
    notebook.save()
    notebook.page.wait_for_timeout(500)
    before = in_view(notebook, "view.history.plainAt(100000)")
    again = opened()
    wait_in_view(again, "view.history.last.step === 12")
    assert in_view(again, "view.history.plainAt(100000)") == before
    press(again, "step")  # the kernel is still there
    wait_in_view(again, "view.history.last.step === 13")


def test_an_executed_notebook_shows_the_run_without_a_kernel(
    opened: Callable[..., Notebook], lab: tuple[Lab, Path]
) -> None:
    """Executed without a page it ends by itself, and keeps the run where it is read later."""
    path = lab[1] / "saved.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    cells = (SETUP, "view.play()", "view.finish()\nview")
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    NotebookClient(notebook, timeout=120, store_widget_state=True).execute()
    nbformat.write(notebook, path)
    bundle = notebook.cells[-1].outputs[0]["data"]
    assert bundle["text/plain"].startswith(
        "EngineView(controls, blocks, lanes, gauges, requests; 12"
    )
    assert path.stat().st_size < 300_000

    untrusted = opened(name="saved.ipynb", kernel=False)
    untrusted.page.wait_for_selector(".jp-OutputArea-output img", timeout=30_000)
    assert untrusted.page.locator(VIEW).count() == 0
    untrusted.page.context.close()

    lab[0].trust(path)
    again = opened(name="saved.ipynb", kernel=False)
    wait_in_view(again, "view.history.last.step > 110 && view.history.last.used === 0")
    assert not in_view(again, "view.state.live")  # there is no engine: the page plays it
    in_view(again, "view.goTo(5)")
    wait_in_view(again, "view.shown.step <= 5")
    press(again, "play")
    wait_in_view(again, "view.state.playing && view.shown.step > 10")


def test_an_exception_of_the_engine_is_shown_in_place(opened: Callable[..., Notebook]) -> None:
    broken = (
        "def broken(batch, cache):\n    raise RuntimeError('the card fell out')\n"
        "working, engine.core.runner.forward = engine.core.runner.forward, broken"
    )
    notebook = opened(SETUP, broken)
    notebook.run_all()
    wait_in_view(notebook, "view.history.length > 0")
    press(notebook, "play")
    notebook.page.wait_for_selector(f"{VIEW} >> [role=alert]:visible", timeout=60_000)
    said = notebook.page.inner_text(f"{VIEW} >> [role=alert]")
    assert said.startswith("the step failed") and "the card fell out" in said
    notebook.run_in_kernel("engine.core.runner.forward = working")
    press(notebook, "play")
    wait_in_view(notebook, "view.history.last.step > 3 && !view.state.error")


def test_a_reader_is_told_that_the_kernel_is_busy_or_gone(
    opened: Callable[..., Notebook],
) -> None:
    notebook = opened(SETUP, "view.step()", name="restarted.ipynb")
    notebook.run_all()
    wait_in_view(notebook, "view.history.last.step === 1")
    kernel = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    busy = "import time\ntime.sleep(8)"
    notebook.page.evaluate(f"(code) => {{ {kernel}.requestExecute({{ code }}); }}", busy)
    press(notebook, "step")
    notebook.page.wait_for_selector(f"{VIEW} >> [role=alert]:visible", timeout=60_000)
    assert "has not answered" in notebook.page.inner_text(f"{VIEW} >> [role=alert]")
    wait_in_view(notebook, "view.history.last.step === 2 && !view.state.error")

    notebook.page.evaluate(f"() => {kernel}.restart()")
    wait_in_view(notebook, "!view.state.live")
    assert "until the cell is run" in notebook.page.inner_text(f'{VIEW} >> [data-pe="about"]')
    press(notebook, "back")
    wait_in_view(notebook, "view.shown.step === 1")
    press(notebook, "step")  # what came can still be looked at
    wait_in_view(notebook, "view.shown.step === 2")
    notebook.run_all()
    wait_in_view(notebook, "view.state.live && view.history.last.step === 1")


def test_the_theme_of_jupyterlab_is_the_views_too(opened: Callable[..., Notebook]) -> None:
    notebook = opened(SETUP, "view.step()")
    notebook.run_all()
    wait_in_view(notebook, "view.history.last.step === 1")
    notebook.theme("JupyterLab Dark")
    wait_in_view(notebook, "view.root.classList.contains('pe-dark')")
    notebook.theme("JupyterLab Light")
    wait_in_view(notebook, "!view.root.classList.contains('pe-dark')")


def test_it_stops_when_the_page_is_gone(opened: Callable[..., Notebook]) -> None:
    soon = "from paged_engine.visualizer import player\nplayer.ASK_AFTER = 1.0"
    notebook = opened(SETUP, soon, name="gone.ipynb")
    notebook.run_all()
    wait_in_view(notebook, "view.history.length > 0")
    notebook.page.select_option(f'{VIEW} >> [data-pe="speed"]', "5")
    press(notebook, "play")
    wait_in_view(notebook, "view.history.last.step > 20")  # so it is asked, and answers
    notebook.save()
    notebook.page.context.close()
    time.sleep(6)
    again = opened(name="gone.ipynb")
    before = steps(again)
    again.page.wait_for_timeout(800)
    assert steps(again) == before < 90  # it had 120 to compute
