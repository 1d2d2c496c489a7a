"""Makes the pictures of the live view that the README shows, from the view itself.

    python assets/make_pictures.py

It needs the test packages and a Chromium or Chrome.  The page is that of a recorded run of the
default model (`assets/traces`), with the JavaScript that the widget has.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tests.browser.lab import open_browser  # noqa: E402  (the repository is no package)

RUN = REPO / "assets" / "traces" / "preemption.html"
WIDTH, HEIGHT = 1120, 700
COLOURS = 64  # of the animation, which is otherwise too large
MILLISECONDS = 110  # a step
EVERY_STEP = "view.history.frames.map((f, i) => [f.b, i + 1]).filter(([b]) => b).map(([, i]) => i)"
BUSIEST = "view.ticks[view.ticks.length - 1] - 2"  # just before the last preemption's recovery


def main() -> None:
    """Write assets/live_light.png, live_dark.png and live.gif."""
    with open_browser() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": WIDTH, "height": HEIGHT},
                color_scheme=scheme,
                device_scale_factor=1.5,
            )
            page = context.new_page()
            page.goto(RUN.as_uri())
            page.wait_for_function("window.view && view.history.length > 0")
            page.evaluate(f"view.goTo({BUSIEST})")
            page.wait_for_timeout(500)
            page.screenshot(path=REPO / "assets" / f"live_{scheme}.png", full_page=True)
            context.close()
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(RUN.as_uri())
        page.wait_for_function("window.view && view.history.length > 0")
        pictures = []
        for count in page.evaluate(EVERY_STEP):
            page.evaluate(f"view.goTo({count})")
            page.wait_for_timeout(60)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            pictures.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
    pictures[0].save(
        REPO / "assets" / "live.gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[MILLISECONDS] * (len(pictures) - 1) + [2500],
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    main()
