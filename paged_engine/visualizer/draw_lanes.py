"""The batch lanes: a lane a request, a stretch a step, and what each step computed."""

from __future__ import annotations

from itertools import groupby

from paged_engine.visualizer.lanes import Lane, Run
from paged_engine.visualizer.marks import (
    Parts,
    box,
    clipped,
    filled,
    legend,
    num,
    path,
    text,
)
from paged_engine.visualizer.palette import NUM_COLOURS, pattern_of

_GUTTER, _ROOM_FOR_SIZES = 104.0, 26.0
_STRIP = 40.0
_MOST_TICKS = 12
_WELL = ("stop", "length")
_RING = "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"
_SQUARE = "M-4 -4h8v8h-8z"
_TRIANGLE = "M0 -5l5 9h-10z"
_CROSS = "M-4 -4l8 8M4 -4l-8 8"
_FLAG = "M-4 -7h8l-4 7z"


class LanePanel:
    """The lanes, the strip of tokens below them, and the legend.

    Attributes:
        height: In pixels, known before it is drawn.
        text: What it shows, in words.
    """

    def __init__(self, run: Run, width: float, mark: int | None = None) -> None:
        self._run = run
        self._width = width
        self._mark = mark
        self._pitch = 20.0 if len(run.lanes) <= 16 else max(8.0, 320 / len(run.lanes))
        self._left = _GUTTER + _ROOM_FOR_SIZES
        self._step = (width - self._left - 10) / max(1, len(run.steps))
        self._lanes_height = self._pitch * max(1, len(run.lanes))
        self._legend_height = legend(0, 0, width, self._entries())[1]
        self.height = 34 + self._lanes_height + 20 + _STRIP + 22 + self._legend_height
        self.text = " ".join(_tell(lane) for lane in run.lanes)

    def draw(self, x: float, y: float) -> Parts:
        """The panel with its upper left corner at (x, y)."""
        run = self._run
        at_once = max((s.num_prefill_tokens + s.num_decode_tokens for s in run.steps), default=0)
        heading = f"Batch, step 1 to {len(run.steps)}" if run.steps else "Batch, before any step"
        parts = [f'<g transform="translate({num(x)} {num(y)})">', text(0, 11, heading, "head")]
        top, strip = 34.0, 34 + self._lanes_height + 20
        parts += self._ticks(strip + _STRIP)
        for row, lane in enumerate(run.lanes):
            parts += self._lane(lane, top + self._pitch * (row + 0.5))
        parts += self._tokens(strip, at_once)
        if self._mark:
            border = num(self._x(self._mark))
            parts.append(path(f"M{border} 28V{num(strip + _STRIP)}", "now"))
            side = " end" if self._mark > len(run.steps) / 2 else ""
            words = f"after step {self._mark}"
            shift = -3 if side else 3
            parts.append(text(self._x(self._mark) + shift, 26, words, "tiny soft" + side))
        parts += legend(0, strip + _STRIP + 20, self._width, self._entries())[0]
        return [*parts, "</g>"]

    def _x(self, border: float) -> float:
        return self._left + border * self._step

    # ------------------------------------------------------------------ one lane

    def _lane(self, lane: Lane, y: float) -> Parts:
        number, step = lane.number, self._step
        colour = f"l{number % NUM_COLOURS}"
        tall = min(13.0, self._pitch - 3)
        parts: Parts = []
        if self._pitch >= 11:
            ink = f"t{number % NUM_COLOURS}" if number < NUM_COLOURS else "halo"
            parts.append(filled(box(0, y - 6, 15, 12), number))
            parts.append(text(7.5, y + 3.2, str(number), f"tiny mid {ink}"))
            parts.append(text(21, y + 3.8, clipped(lane.request_id, 14)))
        else:
            parts.append(filled(box(0, y - tall / 2, 15, tall), number))
        waits = "".join(f"M{num(self._x(a))} {num(y)}H{num(self._x(b))}" for a, b in lane.waits)
        parts.append(path(waits, "wait"))
        line = "".join(f"M{num(self._x(a))} {num(y)}H{num(self._x(b))}" for a, b in lane.decodes)
        dashes = f'stroke-dasharray="{num(step - 1)} 1"' if step >= 4 else ""
        parts.append(path(line, colour, f'stroke-width="5" {dashes}'.strip()))
        if over := pattern_of(number):
            thin = 'stroke-width="1.6"' + (' stroke-dasharray="2 2"' if over == 2 else "")
            parts.append(path(line, "cut", thin))
        gap = 1.0 if step >= 3 else 0.0
        blocks = [
            box(self._x(at - 1), y - tall / 2, max(1.0, step - gap), tall) for at, _ in lane.chunks
        ]
        parts.append(filled("".join(blocks), number))
        if self._pitch >= 11:
            for first, total in _runs_of_chunks(lane.chunks):
                at = self._x(first - 1) - 3
                parts.append(text(at, y + 3.4, str(total), "tiny end soft halo"))
        for at in lane.preempted:
            # it is decided before the step computes anything
            parts.append(_placed(self._x(at - 0.5), y, path(_CROSS, "alarm")))
        if lane.injected:
            parts.append(_placed(self._x(lane.queued), y - tall / 2, _flag()))
        if lane.ended is not None:
            border, reason = lane.ended
            parts.append(_placed(self._x(border) + 3, y, _end(reason, colour)))
        return parts

    # ------------------------------------------------------------------ the strip and the axis

    def _tokens(self, top: float, most: int) -> Parts:
        run, base = self._run, top + _STRIP
        prefill, decode = "", ""
        alarms: Parts = []
        scale = _STRIP / max(1, most)
        width = max(0.8, self._step - (1.0 if self._step >= 3 else 0.0))
        for step in run.steps:
            x = self._x(step.number - 1)
            low = step.num_decode_tokens * scale
            high = step.num_prefill_tokens * scale
            decode += box(x, base - low, width, low) if low else ""
            prefill += box(x, base - low - high, width, high) if high else ""
            if step.failed:
                alarms.append(text(x + width / 2, base - 3, "!", "mid head"))
        words = ["tokens a step", f"most {most}"]
        if budgets := [step.budget for step in run.steps]:
            low_high = dict.fromkeys((min(budgets), max(budgets)))
            words.append(f"budget {' to '.join(map(str, low_high))}")
        parts = [text(0, top + 10 + 13 * i, line, "soft") for i, line in enumerate(words)]
        parts.append(path(prefill, "", 'style="fill:var(--hatch)"'))
        parts.append(path(decode, "", 'style="fill:var(--fg)"'))
        parts.append(path(f"M{num(self._left)} {num(base)}H{num(self._x(len(run.steps)))}", "axis"))
        return parts + alarms

    def _ticks(self, base: float) -> Parts:
        number = len(self._run.steps)
        every = next(e for e in _nice() if number / e <= _MOST_TICKS)
        at = sorted({1, *range(every, number + 1, every)}) if number else []
        if len(at) > 1 and (at[1] - at[0]) * self._step < 16:
            del at[1 if at[1] != number else 0]
        return [text(self._x(s - 0.5), base + 13, str(s), "tiny soft mid") for s in at]

    # ------------------------------------------------------------------ legend

    def _entries(self) -> list[tuple[str, str]]:
        lanes = self._run.lanes
        entries = [
            (filled(box(-4, -6, 9, 12), 0), "prefill, with its tokens"),
            (path("M-7 0h14", "l0", 'stroke-width="5" stroke-dasharray="4 1"'), "decode"),
        ]
        if any(lane.waits for lane in lanes):
            entries.append((path("M-7 0h14", "wait"), "waiting"))
        if any(lane.injected for lane in lanes):
            entries.append((f'<g transform="translate(0 4)">{_flag()}</g>', "injected"))
        if any(lane.preempted for lane in lanes):
            entries.append((path(_CROSS, "alarm"), "preempted"))
        reasons = {lane.ended[1] for lane in lanes if lane.ended is not None}
        if reasons & {*_WELL}:
            entries.append((_end("stop", "wait"), "finished"))
        if "abort" in reasons:
            entries.append((_end("abort", "wait"), "aborted"))
        if reasons - {*_WELL, "abort"}:
            entries.append((_end("error", "wait"), "ended by an error"))
        grey = path(box(-4, -6, 8, 6), "", 'style="fill:var(--hatch)"')
        ink = path(box(-4, 0, 8, 6), "", 'style="fill:var(--fg)"')
        entries.append((grey + ink, "prefill above decode tokens"))
        return entries


def _runs_of_chunks(chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first step and the tokens of each run of chunks in steps that follow each other."""
    runs = []
    for _, group in groupby(enumerate(chunks), key=lambda pair: pair[1][0] - pair[0]):
        members = [chunk for _, chunk in group]
        runs.append((members[0][0], sum(tokens for _, tokens in members)))
    return runs


def _end(reason: str, css: str) -> str:
    shape = _RING if reason in _WELL else _SQUARE if reason == "abort" else _TRIANGLE
    return path(shape, css, 'stroke-width="2" style="fill:var(--bg)"')


def _flag() -> str:
    return path(_FLAG, "", 'style="fill:var(--fg)"')


def _placed(x: float, y: float, mark: str) -> str:
    return f'<g transform="translate({num(x)} {num(y)})">{mark}</g>'


def _nice() -> list[int]:
    return [digit * 10**power for power in range(9) for digit in (1, 2, 5)]


def _tell(lane: Lane) -> str:
    """A lane in one sentence."""
    words = [f"{lane.request_id}: {lane.num_prompt_tokens} prompt tokens"]
    if lane.injected:
        words.append(f"added after step {lane.queued} while others were served")
    if lane.num_cached_tokens:
        words.append(f"{lane.num_cached_tokens} of them cached")
    words.append(f"joined in step {lane.admitted[0]}" if lane.admitted else "never joined")
    words += [f"preempted in step {step}" for step in lane.preempted]
    words += [f"joined again in step {step}" for step in lane.admitted[1:]]
    words.append(f"{lane.num_output_tokens} tokens out")
    if lane.ended is not None:
        words.append(f"ended after step {lane.ended[0]} ({lane.ended[1]})")
    return ", ".join(words) + "."
