"""The series as a site: every link leads somewhere, nothing is loaded from elsewhere, it plays."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from filelock import FileLock

from paged_engine.lessons.site import export_site
from paged_engine.lessons.site.replays import STATE, WIDGET
from tests.notebooks.lesson import NOTEBOOKS, REPO

NARROW = 390
LOADS = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src"}
REPLAYS_SHOWN = "[...document.querySelectorAll('.site-replay')].every((place) => place.view?.drawn)"
# What is wider than the screen, unless it is inside something that one can move.
TOO_WIDE = """() => [...document.body.querySelectorAll("*")].filter((e) => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let up = e.parentElement; up; up = up.parentElement) {
        if (up !== document.body && /auto|scroll|hidden/.test(getComputedStyle(up).overflowX)) {
            return up.getBoundingClientRect().right > innerWidth + 1;
        }
    }
    return true;
}).map((e) => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the series, exported once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site-of-the-series"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists() or not (folder / "static" / "site.js").exists():
            export_site(REPO, folder)
    return folder


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Open a page of the site without a network; errors in it, and requests, fail the test."""
    contexts: list[Any] = []
    faults: list[str] = []

    def look_at(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            faults.append(f"asked for {request.url}")

    def open_page(name: str, *, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(f"did not get {request.url}"))
        page.on("request", look_at)
        page.goto((site / name).as_uri())
        page.wait_for_function(REPLAYS_SHOWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


class Page(HTMLParser):
    """What a page links to, what it loads, and which places in it have a name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {given["id"] or ""} if "id" in given else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        elif given.get(LOADS.get(tag, "")):
            self.loads.append(given[LOADS[tag]] or "")


def pages_of(site: Path) -> dict[Path, Page]:
    return {file.resolve(): Page(file) for file in sorted(site.rglob("*.html"))}


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*:|//", address))


def views_in(notebook: Path) -> list[dict[str, Any]]:
    """The saved state of each live view that a notebook shows."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    state = content["metadata"].get("widgets", {}).get(STATE, {}).get("state", {})
    return [
        state[output["data"][WIDGET]["model_id"]]
        for cell in content["cells"]
        for output in cell.get("outputs", [])
        if WIDGET in output.get("data", {})
    ]


def test_every_notebook_and_page_is_there(site: Path) -> None:
    for notebook in NOTEBOOKS:
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()
    for name in ("index.html", "notebooks/GLOSSARY.html", "README.html", "docs/architecture.html"):
        assert (site / name).is_file()
    index = Page(site / "index.html")
    for notebook in re.findall(
        r"\]\((\d\d_\w+)\.ipynb\)", (REPO / "notebooks/README.md").read_text()
    ):
        assert f"notebooks/{notebook}.html" in index.links


def test_every_link_in_the_site_leads_somewhere(site: Path) -> None:
    pages = pages_of(site)
    followed = 0
    for file, page in pages.items():
        for address in page.links + page.loads:
            if is_elsewhere(address):
                continue
            path, _, fragment = address.partition("#")
            target = (file.parent / unquote(path)).resolve() if path else file
            where = f"{file.relative_to(site.resolve())}: {address}"
            assert target.is_file() and target.is_relative_to(site.resolve()), where
            assert not fragment or fragment in pages[target].names, where
            assert target.suffix not in (".ipynb", ".md"), where
            followed += 1
    assert followed > 20 * len(NOTEBOOKS)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Only a reader who follows a link leaves the site."""
    for file, page in pages_of(site).items():
        for address in page.loads:
            assert not is_elsewhere(address) or address.startswith("data:"), (file, address[:80])
        assert not re.search(r"cdnjs|jsdelivr|unpkg|mathjax|require\.min", page.text, re.I), file
    scripts = [*site.rglob("*.js"), *site.rglob("*.css")]
    assert len(scripts) == 4
    for file in scripts:
        text = re.sub(
            r"/\*.*?\*/|//[^\n\"']*$", "", file.read_text(encoding="utf-8"), flags=re.S | re.M
        )
        for address in re.findall(r"(?:url\(|@import|import\(|fetch\()\s*[\"']?([^)\"']*)", text):
            assert address.startswith("data:"), f"{file.name} loads {address}"


def test_where_a_live_view_stood_a_replay_of_its_run_stands(site: Path) -> None:
    total = 0
    for notebook in NOTEBOOKS:
        text = (site / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        runs = re.findall(r'<script type="text/plain">([^<]*)</script>', text)
        saved = ["".join(view["buffers"][0]["data"].split()) for view in views_in(notebook)]
        assert runs == saved, notebook.name
        assert "application/vnd.jupyter.widget" not in text
        total += len(saved)
    assert total


def with_view() -> str:
    """The first notebook's page; it opens on a live view."""
    assert views_in(NOTEBOOKS[0])
    return f"notebooks/{NOTEBOOKS[0].stem}.html"


@pytest.mark.parametrize("width", [1280, NARROW])
def test_a_replay_plays_and_is_scrubbed(visit: Callable[..., Any], width: int) -> None:
    page = visit(with_view(), width=width)
    place = page.locator(".site-replay").first
    view = "document.querySelector('.site-replay').view"
    length = page.evaluate(f"{view}.history.length")
    assert length > 10
    shown = page.evaluate(f"{view}.count")
    assert 0 < shown < length and page.evaluate(f"{view}.shown.used") > 0, "opens on a full pool"
    picture = f"{view}.root.querySelector('[data-pe=blocks]').toDataURL()"
    before = page.evaluate(picture)
    place.locator('[data-pe="slider"]').fill("1")
    page.wait_for_function(f"{view}.shown.step === {view}.history.frames[0].s")
    assert page.evaluate(picture) != before
    place.locator('[data-pe="step"]').click()
    assert page.evaluate(f"{view}.count") == 2
    place.locator('[data-pe="slider"]').fill(str(length - 12))
    place.locator('[data-pe="play"]').click()
    page.wait_for_function(f"{view}.count > {length - 10} && {view}.state.playing")
    page.wait_for_function(f"{view}.cursor === null && !{view}.state.playing")
    assert not place.locator('[data-pe="inject"]').is_visible(), "there is no engine to ask"


def test_no_page_asks_the_network_and_none_is_wider_than_a_telephone(
    visit: Callable[..., Any], site: Path
) -> None:
    page = visit("index.html", width=NARROW)
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        page.wait_for_function(REPLAYS_SHOWN)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= NARROW, f"{file.name}: {page.evaluate(TOO_WIDE)}"
        assert page.evaluate(TOO_WIDE) == [], file.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_by_the_system_and_by_the_button(
    visit: Callable[..., Any], scheme: str
) -> None:
    """Text, code and replay alike; and the next page remembers."""
    page = visit(with_view(), scheme=scheme)
    other = {"light": "dark", "dark": "light"}[scheme]

    def looks() -> dict[str, str]:
        page.wait_for_timeout(500)  # a theme's colours come some time after its name
        light = """(e) => {
            const [r, g, b] = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
            return r + g + b > 384 ? "light" : "dark"; }"""
        ink = """(e) => {
            const [r, g, b] = getComputedStyle(e).color.match(/[\\d.]+/g).map(Number);
            return r + g + b > 384 ? "dark" : "light"; }"""
        found = {
            "page": page.eval_on_selector("body", light),
            "text": page.eval_on_selector(".jp-RenderedMarkdown p", ink),
            "code": page.eval_on_selector(".jp-InputArea-editor .n", ink),
            "replay": page.eval_on_selector(".site-replay .pe-root", light),
        }
        dark = page.evaluate("document.querySelector('.pe-root').classList.contains('pe-dark')")
        return found | {"canvas": "dark" if dark else "light"}

    assert set(looks().values()) == {scheme}
    assert page.inner_text(".site-theme") == other
    page.click(".site-theme")
    assert set(looks().values()) == {other}
    page.reload()
    assert set(looks().values()) == {other}
