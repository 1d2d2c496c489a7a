"""A browser for all tests of one process, and pages that show a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_engine.visualizer.page import replay_page
from tests.browser.lab import find_browser, open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Where CI lacks it that is an error, elsewhere a reason to skip.

    It is closed with its module: while it is open an event loop runs, in which no other can.
    """
    if find_browser() is None:
        reason = "no Chromium or Chrome is installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with open_browser() as opened:
        yield opened


def settle(page: Any) -> None:
    """Wait until the page has drawn what it knows."""
    page.evaluate(
        """() => new Promise((done) => {
            const before = view.drawn;
            view.wake();
            const look = () => (view.drawn > before ? done() : requestAnimationFrame(look));
            look();
        })"""
    )


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the replay page of a document; page errors fail the test."""
    contexts: list[Any] = []
    errors: list[str] = []

    def open_page(document: dict[str, Any], *, width: int = 1280, scheme: str = "light") -> Any:
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(replay_page(document, "a test", "a tiny model"), encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        count = len(document["frames"])
        page.wait_for_function(f"window.view && view.history.length === {count}")
        page.evaluate("view.goTo(view.history.length)")
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors, errors
