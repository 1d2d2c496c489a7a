"""Makes a picture of the live view that a notebook shows, at one step of its run.

    python assets/make_view_picture.py notebooks/00_start_here.ipynb 9 \
        assets/notebooks/00_live_view.png

The notebook's cells are run until there is a `view`, which is then finished with nothing beside it,
so that the gauges tell of it alone.  It needs the test packages and a Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from paged_engine.visualizer.page import replay_page  # noqa: E402  (the repository is no package)
from tests.browser.lab import open_browser  # noqa: E402

WIDTH, HEIGHT = 1120, 400  # of the window; the picture is as high as the page


def view_of(notebook: Path) -> Any:
    """The first view of a notebook, run to its end."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "<cell>", "exec"), names)
        if "view" in names:
            names["view"].finish()
            return names["view"]
    raise SystemExit(f"{notebook} makes no `view`")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Make a picture of a notebook's live view.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("step", type=int)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    view = view_of(options.notebook)
    document = view.timeline.document()
    start = max(i for i, frame in enumerate(document["frames"], 1) if frame["s"] == options.step)
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        page_file = Path(folder) / "run.html"
        page_file.write_text(replay_page(document, "a run", view.about, start), encoding="utf-8")
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5
        )
        page.goto(page_file.as_uri())
        page.wait_for_function("window.view && view.history.length > 0")
        page.wait_for_timeout(500)
        page.screenshot(path=options.picture, full_page=True)


if __name__ == "__main__":
    main()
