"""The site's parts: links, replays, folders; and an export of a repository of two pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from paged_engine.errors import PagedEngineError
from paged_engine.lessons.folders import MARK, ready_folder
from paged_engine.lessons.site.__main__ import main
from paged_engine.lessons.site.links import Links, anchor_of, place_of, with_anchors
from paged_engine.lessons.site.replays import STATE, WIDGET, with_replays


def make_repo(root: Path) -> Path:
    """A map, a glossary, a notebook that was not run, a picture and a folder of pages."""
    (root / "notebooks").mkdir(parents=True)
    (root / "assets/traces").mkdir(parents=True)
    (root / "notebooks/README.md").write_text(
        "# The map\n\n[00](00_first.ipynb) [words](GLOSSARY.md#kv-cache) "
        "[runs](../assets/traces) [gone](09_gone.ipynb)\n\n![a *dot*](../assets/dot.svg)\n"
    )
    (root / "notebooks/GLOSSARY.md").write_text("# Words\n\n### KV cache\n\n[map](README.md)\n")
    (root / "assets/dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (root / "assets/traces/a.html").write_text("<title>a run</title>")
    cells = [
        nbformat.v4.new_markdown_cell("# Why?\n\n[map](README.md) [vLLM](https://vllm.ai)"),
        nbformat.v4.new_code_cell("print('the answer is', 6 * 7)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks/00_first.ipynb")
    return root


# Links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("notebooks/README.md", "index.html"),
        ("README.md", "README.html"),
        ("notebooks/05_scheduler.ipynb", "notebooks/05_scheduler.html"),
        ("LICENSE", "LICENSE.txt"),
        ("assets/a.svg", "assets/a.svg"),
    ],
)
def test_every_file_has_a_place(source: str, place: str) -> None:
    assert place_of(source) == place


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<a href="00_first.ipynb">x</a>', '<a href="00_first.html">x</a>'),
        ('<a class="k" href="README.md">x</a>', '<a class="k" href="../index.html">x</a>'),
        ('<a href="GLOSSARY.md#kv-cache">x</a>', '<a href="GLOSSARY.html#kv-cache">x</a>'),
        ('<a href="../assets/traces">x</a>', '<a href="../assets/traces/index.html">x</a>'),
        ('<a href="#here">x</a>', '<a href="#here">x</a>'),
        (
            '<a href="https://vllm.ai/?a=1&amp;b">x</a>',
            '<a href="https://vllm.ai/?a=1&amp;b">x</a>',
        ),
        ('<img alt="d" src="../assets/dot.svg"/>', '<img alt="d" src="../assets/dot.svg"/>'),
        ('<source srcset="../assets/dot.svg">', '<source srcset="../assets/dot.svg">'),
        ('<img src="data:image/png;base64,AA">', '<img src="data:image/png;base64,AA">'),
        # what leads nowhere, or would be loaded from elsewhere, becomes text
        ('<a href="09_gone.ipynb">x</a>', "<a>x</a>"),
        ('<a href="../../etc/hosts">x</a>', "<a>x</a>"),
        ('<img alt="a badge" src="https://b.io/x.svg">', "a badge"),
        ('<img alt="gone" src="../assets/gone.png">', "gone"),
        # code that speaks of links is left alone
        ("<pre>href=&quot;README.md&quot;</pre>", "<pre>href=&quot;README.md&quot;</pre>"),
    ],
)
def test_a_link_leads_into_the_site(tmp_path: Path, before: str, after: str) -> None:
    links = Links(make_repo(tmp_path / "repo"))
    assert links.rewritten(before, "notebooks/00_first.ipynb") == after
    was_lost = after in ("<a>x</a>", "a badge", "gone")
    assert bool(links.broken) is was_lost
    assert bool(links.wanted) is ((not was_lost and ".." in before) or ".html" in after)


def test_headings_have_the_names_that_github_gives_them() -> None:
    assert anchor_of("KV cache: what?") == "kv-cache-what"
    page = with_anchors("<h2>A <code>b_c</code>!</h2><h3>A b_c</h3><h1 id='x'>y</h1>")
    assert 'id="a-b_c"' in page and 'id="a-b_c-1"' in page and "<h1 id='x'>y</h1>" in page


# Replays -----------------------------------------------------------------------------------------


def notebook_with(state: dict[str, Any], buffers: list[dict[str, Any]]) -> Any:
    output = nbformat.v4.new_output(
        "execute_result",
        {WIDGET: {"model_id": "m"}, "image/png": "AA==\n", "text/plain": "EngineView()"},
        execution_count=1,
    )
    cell = nbformat.v4.new_code_cell("view", outputs=[output])
    saved = {"m": {"state": state, "buffers": buffers}}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {STATE: {"state": saved}}})


def test_a_view_becomes_a_replay_with_controls_and_a_picture_without_javascript() -> None:
    state = {"parts": ["blocks"], "about": 'a "tiny" <b>'}
    notebook = notebook_with(state, [{"path": ["saved"], "data": "QUJD\n"}])
    assert with_replays(notebook) == 1
    (output,) = notebook.cells[0].outputs
    assert set(output.data) == {"text/html", "text/plain"} and output.metadata.replay
    page = output.data["text/html"]
    assert 'data-parts="[&quot;controls&quot;, &quot;blocks&quot;]"' in page
    assert "a &quot;tiny&quot; &lt;b&gt;" in page and "<noscript><img" in page
    assert '<script type="text/plain">QUJD</script>' in page
    assert "widgets" not in notebook.metadata


def test_another_widget_becomes_its_picture() -> None:
    notebook = notebook_with({"value": 3}, [])
    assert with_replays(notebook) == 0
    assert set(notebook.cells[0].outputs[0].data) == {"image/png", "text/plain"}


# Folders -----------------------------------------------------------------------------------------


def test_a_folder_is_made_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    ready_folder(folder, "site")
    (folder / "old").mkdir()
    (folder / "old/x").touch()
    ready_folder(folder, "site")
    assert [path.name for path in folder.iterdir()] == [MARK]


def test_what_others_wrote_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(PagedEngineError, match="did not write"):
        ready_folder(tmp_path, "site")
    with pytest.raises(PagedEngineError, match="is a file"):
        ready_folder(tmp_path / "thesis.txt", "site")
    (tmp_path / MARK).write_text("student\n")
    with pytest.raises(PagedEngineError, match="did not write"):
        ready_folder(tmp_path, "site")
    with pytest.raises(PagedEngineError, match="--force"):
        ready_folder(tmp_path, "student", replace=False)
    assert (tmp_path / "thesis.txt").exists()


# The command -------------------------------------------------------------------------------------


def test_an_export_says_what_it_made_and_what_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, to = make_repo(tmp_path / "repo"), tmp_path / "out/site"
    assert main(["--root", str(root), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "links to 09_gone.ipynb, which is not there" in said
    assert "1 notebooks with 0 replays, 3 other pages, 2 files" in said
    assert "the answer is 42" not in (to / "notebooks/00_first.html").read_text()
    listing = (to / "assets/traces/index.html").read_text()
    assert '<a href="a.html">a run</a>' in listing
    assert 'href="../../static/site.css"' in listing
    assert '<a href="https://vllm.ai">' in (to / "notebooks/00_first.html").read_text()


def test_a_formula_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_repo(tmp_path / "repo")
    (root / "notebooks/GLOSSARY.md").write_text("# Words\n\n$\\frac{1}{2}$, and `$a_b$` for $5\n")
    assert main(["--root", str(root), "--to", str(tmp_path / "site")]) == 0
    assert "GLOSSARY.md has formulas" in capsys.readouterr().out


def test_a_folder_with_other_things_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_repo(tmp_path / "repo")
    assert main(["--root", str(root), "--to", str(root)]) == 1
    assert "did not write" in capsys.readouterr().err and (root / "assets").exists()


def test_notebooks_can_be_run_anew(tmp_path: Path) -> None:
    root = make_repo(tmp_path / "repo")
    assert main(["--root", str(root), "--to", str(tmp_path / "site"), "--execute"]) == 0
    assert "the answer is 42" in (tmp_path / "site/notebooks/00_first.html").read_text()
    assert "finish_all" not in (tmp_path / "site/notebooks/00_first.html").read_text()
