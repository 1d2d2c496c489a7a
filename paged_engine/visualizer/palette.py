"""The colours that every picture of a run shares, on light paper and on dark.

A request has a number, in order of arrival, and the number decides its looks: seven colours of
Okabe and Ito that readers of any colour vision can tell apart (https://jfly.uni-koeln.de/color/),
then the same seven striped, then dotted.  The eighth of theirs is black, which dark paper hides.
Free is grey, and a number or a shape stands beside every colour.
"""

from __future__ import annotations

# Name, on light paper, on dark paper, and what can be read on it.  Yellow is deepened on white.
_COLOURS = [
    ("blue", "#0072b2", "#2389c9", "#fff"),
    ("orange", "#e69f00", "#e69f00", "#000"),
    ("green", "#009e73", "#009e73", "#000"),
    ("sky", "#56b4e9", "#56b4e9", "#000"),
    ("vermilion", "#d55e00", "#d55e00", "#000"),
    ("pink", "#cc79a7", "#cc79a7", "#000"),
    ("yellow", "#e0d000", "#f0e442", "#000"),
]
NUM_COLOURS = len(_COLOURS)
NUM_PATTERNS = 3  # plain, striped, dotted

# Name, JupyterLab's variable where the picture stands inside its page, light, dark.
_PAPER = [
    ("bg", "--jp-layout-color1", "#fff", "#1b1c20"),
    ("fg", "--jp-content-font-color1", "#1f2328", "#e8e8ea"),
    ("soft", "--jp-content-font-color2", "#59636e", "#a9a9b0"),
    ("line", "--jp-border-color2", "#d0d7de", "#3a3b42"),
    ("free", "--jp-layout-color2", "#eaebee", "#2c2d33"),
    ("hatch", "--jp-layout-color4", "#8c8f96", "#85868e"),
    ("alarm", "--pe-none", "#c03d00", "#ff7a33"),
]


def colour_class(number: int) -> str:
    """The CSS class with the colour of request `number`."""
    return f"c{number % NUM_COLOURS}"


def pattern_of(number: int) -> int:
    """0 plain, 1 striped, 2 dotted: what tells apart requests of one colour."""
    return number // NUM_COLOURS % NUM_PATTERNS


def colours(dark: bool = False) -> list[tuple[str, str]]:
    """The seven colours on that paper, and what can be read on each, for who draws without CSS."""
    return [(night if dark else day, ink) for _, day, night, ink in _COLOURS]


def paper(dark: bool = False) -> dict[str, str]:
    """What is not a request's: `bg`, `fg`, `soft`, `line`, `free`, `hatch` and `alarm`."""
    return {name: night if dark else day for name, _, day, night in _PAPER}


def style() -> str:
    """The style sheet, which touches nothing outside elements of class `pe`."""
    light = "".join(f"--{name}:var({jupyter},{day});" for name, jupyter, day, _ in _PAPER)
    dark = "".join(f"--{name}:var({jupyter},{night});" for name, jupyter, _, night in _PAPER)
    light += "".join(f"--c{i}:{day};" for i, (_, day, _, _) in enumerate(_COLOURS))
    dark += "".join(f"--c{i}:{night};" for i, (_, _, night, _) in enumerate(_COLOURS))
    rules = [
        f".pe{{{light}font:11px system-ui,sans-serif;fill:var(--fg)}}",
        f"@media(prefers-color-scheme:dark){{.pe{{{dark}}}}}",
        ".pe .paper{fill:var(--bg);stroke:var(--line)}",
        ".pe .big{font-size:14px;font-weight:600}.pe .head{font-weight:600}",
        ".pe .soft{fill:var(--soft)}.pe .tiny{font-size:9px}.pe .end{text-anchor:end}",
        ".pe .mid{text-anchor:middle}",
        ".pe .halo{paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}",
        ".pe .free{fill:var(--free)}.pe .wait{stroke:var(--hatch);fill:none}",
        ".pe .alarm{stroke:var(--alarm);fill:none;stroke-width:2}",
        ".pe .now{stroke:var(--fg);stroke-dasharray:3 2;fill:none}",
        ".pe .cut{stroke:var(--bg);fill:none}.pe .axis{stroke:var(--line);fill:none}",
    ]
    for i, (_, _, _, ink) in enumerate(_COLOURS):
        rules.append(
            f".pe .c{i}{{fill:var(--c{i})}}"
            f".pe .l{i}{{stroke:var(--c{i});fill:none}}.pe .t{i}{{fill:{ink}}}"
        )
    return "<style>" + "".join(rules) + "</style>"


def patterns() -> str:
    """Fills laid over a colour, and the hatching of what is cached but not in use.

    They are the same in every picture, so that two pictures in one page may share them.
    """
    return (
        '<defs><pattern id="pe-hatch" width="4" height="4" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="4" height="4" style="fill:var(--free)"/>'
        '<rect width="1.6" height="4" style="fill:var(--hatch)"/></pattern>'
        '<pattern id="pe-over1" width="4" height="4" patternUnits="userSpaceOnUse">'
        '<rect width="4" height="1.2" style="fill:var(--bg)"/></pattern>'
        '<pattern id="pe-over2" width="4" height="4" patternUnits="userSpaceOnUse">'
        '<circle cx="2" cy="2" r="1" style="fill:var(--bg)"/></pattern></defs>'
    )
