"""Where a live view stood in a notebook, its saved run as a replay in the page."""

from __future__ import annotations

import html
import json
from typing import Any

from paged_engine.visualizer.page import program

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
_SAVED = ["saved"]  # the trait of EngineView that holds the run, packed


def view_program() -> str:
    """The view's JavaScript as a plain script: pages opened from a disk may load no modules."""
    return (
        f'"use strict";\n(() => {{\n{program()}\nwindow.pagedEngine = {{ View, unpack }};\n}})();\n'
    )


def with_replays(notebook: Any) -> int:
    """Put a replay in the place of every live view of a notebook; other widgets become pictures.

    Args:
        notebook: A node of nbformat, changed in place.

    Returns:
        How many replays it has now.
    """
    saved = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    count = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            model = saved.get(data.pop(WIDGET, {}).get("model_id"))
            run = model and next((b for b in model["buffers"] if b["path"] == _SAVED), None)
            if run:
                picture = data.pop("image/png", None)
                data["text/html"] = _replay(model["state"], run["data"], picture)
                output.setdefault("metadata", {})["replay"] = True
                count += 1
    return count


def _replay(state: dict[str, Any], run: str, picture: str | None) -> str:
    """The place in a page where site.js starts a view."""
    parts = state["parts"]
    if "controls" not in parts:  # in a notebook the kernel plays it
        parts = ["controls", *parts]
    shown = "".join((picture or "").split())
    still = f'<img alt="a picture of the run" src="data:image/png;base64,{shown}">' if shown else ""
    return (
        f'<div class="site-replay" data-parts="{html.escape(json.dumps(parts))}" '
        f'data-about="{html.escape(state["about"])}">'
        f'<div class="site-view"></div><noscript>{still}</noscript>'
        f'<script type="text/plain">{"".join(run.split())}</script></div>'
    )
