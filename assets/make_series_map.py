"""Draws assets/series_map.svg: the parts of the engine, and the notebook that builds each.

    python -m assets.make_series_map

Run it from the repository's root.  The picture is the same each time; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paged_engine.visualizer.marks import Parts, box, path, text
from paged_engine.visualizer.static import Picture

FILE = Path(__file__).resolve().parent / "series_map.svg"
TITLE = "The parts of the engine, and the notebooks that build them"
LEFT, PITCH, WIDTH = 16, 158, 138  # of the columns
TOP, ROW, HEIGHT = 62, 94, 58  # of the rows
CHIP = 22  # a notebook's number
LAST_OF_THE_ENGINE = 9  # notebooks after it go beyond


@dataclass(frozen=True)
class Part:
    """A box: where it stands, what it is, and in which notebooks it is built."""

    column: int
    row: int
    name: str
    does: str
    notebooks: tuple[int, ...]

    @property
    def x(self) -> int:
        return LEFT + PITCH * self.column

    @property
    def y(self) -> int:
        return TOP + ROW * self.row

    @property
    def middle(self) -> int:
        return self.x + WIDTH // 2


PARTS = [
    Part(0, 0, "router", "picks a replica", (17,)),
    Part(0, 1, "server", "streams tokens", (16,)),
    Part(1, 1, "request", "prompt and answer", (4,)),
    Part(2, 1, "waiting queue", "who is not in yet", (5,)),
    Part(3, 0, "sampler", "chooses the token", (1, 15)),
    Part(3, 1, "scheduler", "who computes what", (5, 12)),
    Part(3, 2, "block pool", "lends out blocks", (6, 11)),
    Part(4, 1, "batch", "a step's tokens", (3, 5)),
    Part(4, 2, "KV cache", "what is kept", (2, 6, 14)),
    Part(5, 1, "model", "tokens to logits", (1, 14)),
    Part(5, 2, "attention", "reads the blocks", (7, 13)),
    Part(3, 3, "events", "every change", (4, 9)),
    Part(4, 3, "benchmark", "counts and times", (10,)),
    Part(2, 3, "visualizer", "shows the run", (0, 9)),
]
ENGINE = 8  # the notebook that puts the parts together


def numbers() -> set[int]:
    """Every notebook that is in the picture."""
    return {number for part in PARTS for number in part.notebooks} | {ENGINE}


def chip(right: float, y: float, number: int) -> Parts:
    """A number in a small box: filled, or outlined where it goes beyond the engine."""
    x = right - CHIP
    beyond = number > LAST_OF_THE_ENGINE
    outline = f'<rect class="{{}}" x="{x:.0f}" y="{y:.0f}" width="{CHIP}" height="15" rx="3"/>'
    words = text(x + CHIP / 2, y + 11.5, f"{number:02}", f"mid head{'' if beyond else ' t0'}")
    return [outline.format("l0" if beyond else "c0"), words]


def arrow(*points: tuple[float, float], both: bool = False) -> str:
    """A line through these points, with a head at its end."""
    line = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)
    heads = [(points[-2], points[-1])] + ([(points[1], points[0])] if both else [])
    for (x0, y0), (x1, y1) in heads:
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        a = (x1 - 6 * dx - 4 * dy, y1 - 6 * dy - 4 * dx)
        b = (x1 - 6 * dx + 4 * dy, y1 - 6 * dy + 4 * dx)
        line += f"M{a[0]:.0f} {a[1]:.0f}L{x1:.0f} {y1:.0f}L{b[0]:.0f} {b[1]:.0f}"
    return path(line, "wait", 'stroke-width="1.6"')


def draw() -> Picture:
    """The picture."""
    at = {part.name: part for part in PARTS}
    frame_x, frame_y = at["request"].x - 11, TOP - 14
    frame_width = at["model"].x + WIDTH + 11 - frame_x
    body: Parts = [
        path(box(frame_x, frame_y, frame_width, 3 * ROW - 8), "now"),
        text(frame_x + 10, frame_y + 20, "engine", "head"),
        text(frame_x + 10, frame_y + 35, "step() calls the parts in turn", "soft"),
        *chip(frame_x + 78, frame_y + 9, ENGINE),
    ]
    for part in PARTS:
        body += [
            f'<rect class="free" x="{part.x}" y="{part.y}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="5"/>',
            text(part.x + 9, part.y + 37, part.name, "big"),
            text(part.x + 9, part.y + 51, part.does, "soft"),
        ]
        for place, number in enumerate(reversed(part.notebooks)):
            body += chip(part.x + WIDTH - 7 - place * (CHIP + 4), part.y + 7, number)
    body += arrows(at)
    y = TOP + 4 * ROW - 12
    for right, number, says in [
        (LEFT + CHIP, 9, "and before: the engine"),
        (230, 10, "and after: beyond it"),
    ]:
        body += [*chip(right, y, number), text(right + 7, y + 11.5, says, "soft")]
    told = [
        f"{part.name} ({part.does}): notebook{'s' if len(part.notebooks) > 1 else ''} "
        f"{', '.join(f'{number:02}' for number in part.notebooks)}."
        for part in PARTS
    ]
    told.append(f"All of them together, the engine: notebook {ENGINE:02}.")
    return Picture(TITLE, " ".join(told), body, y + 30, 2 * LEFT + 5 * PITCH + WIDTH)


def arrows(at: dict[str, Part]) -> Parts:
    """What goes where."""

    def across(left: str, right: str, both: bool = False) -> str:
        y = at[left].y + HEIGHT // 2
        return arrow((at[left].x + WIDTH + 3, y), (at[right].x - 3, y), both=both)

    def down(upper: str, lower: str, both: bool = False) -> str:
        x = at[upper].middle
        return arrow((x, at[upper].y + HEIGHT + 3), (x, at[lower].y - 3), both=both)

    request, sampler, model, events = (
        at[name] for name in ("request", "sampler", "model", "events")
    )
    back = request.middle + 40
    over = sampler.y + HEIGHT // 2
    beside = events.y + HEIGHT // 2
    under = at["block pool"].y + HEIGHT + 14
    return [
        down("router", "server"),
        across("server", "request"),
        across("request", "waiting queue"),
        across("waiting queue", "scheduler"),
        across("scheduler", "batch"),
        across("batch", "model"),
        down("scheduler", "block pool", both=True),
        across("block pool", "KV cache"),
        across("KV cache", "attention", both=True),
        down("model", "attention", both=True),
        arrow((model.middle, model.y - 3), (model.middle, over), (sampler.x + WIDTH + 3, over)),
        arrow((sampler.x - 3, over), (back, over), (back, request.y - 3)),
        text(at["waiting queue"].x + 12, over - 6, "one token more", "soft"),
        arrow((events.middle, under), (events.middle, events.y - 3)),
        across("events", "benchmark"),
        arrow((events.x - 3, beside), (at["visualizer"].x + WIDTH + 3, beside)),
    ]


if __name__ == "__main__":
    draw().save(FILE)
