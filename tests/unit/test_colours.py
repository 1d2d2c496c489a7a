"""Colours are told apart with any colour vision, and are the same in Python and in the page.

Colour vision deficiencies are simulated with the matrices of Machado, Oliveira and Fernandes
(2009, doi:10.1109/TVCG.2009.113) at full severity; distance is CIE76 in CIELAB, where 2.3 is a just
noticeable difference.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from paged_engine.visualizer import palette
from paged_engine.visualizer.page import WEB

VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
FAR_ENOUGH = 10.0  # over four just noticeable differences
PAPER = {"light": "#ffffff", "dark": "#1b1c20"}


def colours(theme: str) -> list[str]:
    found = [c[1 if theme == "light" else 2] for c in palette._COLOURS]
    assert len(found) == palette.NUM_COLOURS == 7
    return found


def linear(colour: str) -> np.ndarray:
    if len(colour) == 4:
        colour = "#" + "".join(2 * digit for digit in colour[1:])
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def seen(colour: str, vision: str) -> np.ndarray:
    return lab(VISION[vision] @ linear(colour))


def contrast(a: str, b: str) -> float:
    lights = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear(c))) for c in (a, b))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("theme", PAPER)
@pytest.mark.parametrize("vision", VISION)
def test_any_two_requests_differ_in_any_colour_vision(theme: str, vision: str) -> None:
    for a, b in itertools.combinations([*colours(theme), PAPER[theme]], 2):
        distance = float(np.linalg.norm(seen(a, vision) - seen(b, vision)))
        assert distance > FAR_ENOUGH, f"{a} and {b} with {vision}: {distance:.1f}"


@pytest.mark.parametrize("theme", PAPER)
def test_what_is_written_on_a_colour_can_be_read(theme: str) -> None:
    for (_, *_, ink), colour in zip(palette._COLOURS, colours(theme), strict=True):
        assert contrast(ink, colour) >= 3.0, (ink, colour)


def test_the_page_has_the_same_colours_and_inks() -> None:
    source = (WEB / "look.js").read_text(encoding="utf-8")
    block = source[source.index("const COLOURS") : source.index("const NAMES")]
    pairs = re.findall(r'\["(#\w+)", "(#\w+)"\]', block)
    assert pairs == [(c[1], c[2]) for c in palette._COLOURS]
    dark_ink = re.findall(r"\b(true|false)\b", block)
    assert dark_ink == ["true" if c[3] == "#000" else "false" for c in palette._COLOURS]
    assert palette.NUM_PATTERNS == 3 and "% 3" in source
