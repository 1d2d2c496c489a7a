"""Still pictures of a run, as SVG: who holds which block, and who computes what in which step.

    story_svg(engine.log)                  both, at the step with the most blocks in use
    batch_lanes_svg(engine.log)            a lane a request, time to the right
    block_map_svg(state_at(log, 12))       the pool at the end of step 12

They read events and nothing else, hold no times, and are the same for the same run, so a test
can compare them.  Shown last in a cell, Jupyter draws them; `save` writes them to a file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import EngineState
from paged_engine.visualizer.draw_blocks import BlockPanel
from paged_engine.visualizer.draw_lanes import LanePanel
from paged_engine.visualizer.lanes import Run, read_run, state_at
from paged_engine.visualizer.marks import Parts, escape
from paged_engine.visualizer.palette import patterns, style

WIDTH = 840  # what JupyterLab shows, uncut, beside its file browser in a window of 1280
_HALF = 420
_MOST_BLOCKS_IN_HALF = 256
_EDGE = 14
_HEAD = 34
_MOST_STEPS_BESIDE = 90  # a longer run gets the whole width
_BESIDE = 300


class Picture:
    """An SVG image with its message and what it says in words.

    Attributes:
        svg: The whole document.
        title: The one message.
        text: What a reader who cannot see it is told.
    """

    def __init__(
        self, title: str, text: str, body: Parts, height: float, width: int = WIDTH
    ) -> None:
        self.title = title
        self.text = text
        size = f"{width} {height:.0f}"
        self.svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="pe" role="img" width="{width}" '
            f'height="{height:.0f}" viewBox="0 0 {size}"><title>{escape(title)}</title>'
            f"<desc>{escape(text)}</desc>{style()}{patterns()}"
            f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1:.0f}" '
            f'rx="6"/><text class="big" x="{_EDGE}" y="23">{escape(title)}</text>'
            f"{''.join(body)}</svg>\n"
        )

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"{self.title}\n\n{textwrap.fill(self.text, 88)}"

    def save(self, path: str | Path) -> None:
        """Write the image to a file."""
        Path(path).write_text(self.svg, encoding="utf-8")


def block_map_svg(state: EngineState, title: str | None = None) -> Picture:
    """Every block of the pool in a fixed grid, in the colour of whoever holds it.

    Args:
        state: From :func:`state_at`, which keeps every request's colour, or
            `engine.snapshot()`, in which those that ended are forgotten.
        title: The message; None: how many blocks are in use.
    """
    width = _HALF if len(state.blocks) <= _MOST_BLOCKS_IN_HALF else WIDTH
    panel = BlockPanel(state, width - 2 * _EDGE)
    if title is None:
        title = f"{state.num_used} of {len(state.blocks)} blocks are in use"
    body = panel.draw(_EDGE, _HEAD)
    return Picture(title, panel.text, body, _HEAD + panel.height + _EDGE, width)


def batch_lanes_svg(
    log: Iterable[ev.Event], title: str | None = None, step: int | None = None
) -> Picture:
    """A lane for each request over the steps, and the tokens of each step below.

    Args:
        log: All events of an engine.
        title: The message; None: one is found in the run.
        step: A step to mark.

    Raises:
        PagedEngineError: The log is not whole.
    """
    run = read_run(log)
    panel = LanePanel(run, WIDTH - 2 * _EDGE, mark=step)
    body = panel.draw(_EDGE, _HEAD)
    return Picture(title or message(run), panel.text, body, _HEAD + panel.height + _EDGE)


def story_svg(
    log: Iterable[ev.Event], step: int | None = None, title: str | None = None
) -> Picture:
    """Block map and batch lanes in one picture.

    Args:
        log: All events of an engine.
        step: At whose end the blocks are shown; None: the first at which most are in use.
        title: The message; None: one is found in the run.

    Raises:
        PagedEngineError: The log is not whole, or there was no such step.
    """
    events = list(log)
    run = read_run(events)
    step = run.busiest_step if step is None else step
    if not 0 <= step <= len(run.steps):
        raise PagedEngineError(f"step is {step}; expected 0 to {len(run.steps)}, the last one")
    state = state_at(events, step)
    beside = len(run.steps) <= _MOST_STEPS_BESIDE
    inner = WIDTH - 2 * _EDGE
    blocks = BlockPanel(state, _BESIDE if beside else inner, heading=f"Blocks after step {step}")
    left = _BESIDE + 2 * _EDGE if beside else 0
    lanes = LanePanel(run, inner - left, mark=step)
    if beside:
        body = blocks.draw(_EDGE, _HEAD) + lanes.draw(_EDGE + left, _HEAD)
        height = max(blocks.height, lanes.height)
    else:
        body = lanes.draw(_EDGE, _HEAD) + blocks.draw(_EDGE, _HEAD + lanes.height + 6)
        height = blocks.height + lanes.height + 6
    text = f"{blocks.text} {lanes.text}"
    return Picture(title or message(run), text, body, _HEAD + height + _EDGE)


def message(run: Run) -> str:
    """What is most worth seeing in a run, as one sentence."""
    for lane in run.lanes:
        if lane.injected and lane.admitted:
            boarded = lane.admitted[0]
            decoding = sum(
                any(start < boarded <= end for start, end in other.decodes) for other in run.lanes
            )
            if decoding:
                others = "one other decodes" if decoding == 1 else f"{decoding} others decode"
                return f"{lane.request_id} joins the batch in step {boarded}, while {others}"
    for lane in run.lanes:
        if lane.preempted:
            again = [step for step in lane.admitted if step > lane.preempted[0]]
            resumes = f", resumes in step {again[0]}" if again else ""
            return f"{lane.request_id} loses its blocks in step {lane.preempted[0]}{resumes}"
    number, steps = len(run.lanes), len(run.steps)
    requests = "1 request" if number == 1 else f"{number} requests"
    return f"{requests} in {steps} step{'' if steps == 1 else 's'}"
