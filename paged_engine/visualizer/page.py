"""The page's program: the same for the widget, for tests, and for a replay without Python."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from paged_engine.visualizer.timeline import pack_text

WEB = Path(__file__).with_name("web")
VIEW = ("state", "look", "blocks", "lanes", "gauges", "layout", "hands", "view")
PARTS = ("controls", "blocks", "lanes", "gauges", "requests")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: #fff; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16171a;
  --jp-layout-color1: #16171a; --jp-layout-color0: #1d1e22; --jp-content-font-color0: #e8e8ea;
  --jp-content-font-color2: #a9a9b0; --jp-border-color2: #36383f; }} }}
.pe-root {{ margin: 0 auto; }}
{css}</style></head>
<body><div id="view"></div><noscript>This page replays a run of paged_engine, and needs JavaScript.
</noscript><script type="module">
{program}
const packed = "{document}";
const view = new View(document.getElementById("view"), {{ parts: {parts}, send: null }});
window.view = view;
view.setStatus({{ about: {about} }});
unpack(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0))).then((run) => {{
  view.load(run);
  view.goTo({start});
}});
</script></body></html>
"""


def program(*more: str) -> str:
    """The view's JavaScript, and these files after it."""
    return "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in (*VIEW, *more))


def widget_module() -> str:
    """What anywidget loads."""
    return f"{program('widget')}\nexport default {{ render }};\n"


def style_sheet() -> str:
    """The view's CSS."""
    return (WEB / "view.css").read_text(encoding="utf-8")


def replay_page(document: dict[str, Any], title: str, about: str, start: int = 0) -> str:
    """One HTML file that shows a run, without a network, a kernel or an engine.

    Args:
        document: From `Timeline.document`.
        title: Of the page.
        about: What the run is: model, device, pool.
        start: How many frames stand before the cursor when it opens.
    """
    return _PAGE.format(
        title=html.escape(title),
        css=style_sheet(),
        program=program().replace("</", "<\\/"),
        document=pack_text(document),
        parts=list(PARTS),
        about=_string(about),
        start=start,
    )


def _string(text: str) -> str:
    """A string of JavaScript that cannot end the script it stands in."""
    import json

    return json.dumps(text).replace("</", "<\\/")
