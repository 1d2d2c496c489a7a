"""One step of an engine as swim lanes: a row for each part, a line through the events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paged_engine.events import Event
from paged_engine.lessons.charts import WIDEST, Chart, chart

# Which part causes which events, from the caller down to what a token may end.
LANES = {
    "engine": ("step_began", "step_ended"),
    "scheduler": ("admitted", "scheduled"),
    "pool": ("allocated", "freed"),
    "model": ("token", "computed"),
    "request": ("finished",),
}
_ROW = {kind: row for row, kinds in enumerate(LANES.values()) for kind in kinds}


def draw_step(
    events: Sequence[Event],
    title: str,
    requests: Sequence[str],
    text_of: Callable[[int], str] = str,
) -> Chart:
    """A box for each event of a step, in the row of the part that caused it.

    Args:
        events: Of one step, in order.
        title: The message.
        requests: Ids in the order of their colours.
        text_of: What stands for a token id, a short text.
    """
    figure, axes = chart(title, "", "", width=WIDEST, height=4.0)
    look, known = figure.look, [event for event in events if event.kind in _ROW]
    rows = [_ROW[event.kind] for event in known]
    axes.plot(range(len(known)), rows, color=look.soft, linewidth=1.2, zorder=0)
    for x, (row, event) in enumerate(zip(rows, known, strict=True)):
        name = getattr(event, "request_id", None)
        fill = {"color": look.free} if name is None else look.fill(list(requests).index(name))
        axes.barh(row, 0.9, 0.62, x - 0.45, **fill)
        paper = {"facecolor": look.bg, "pad": 1.2, "linewidth": 0}
        label = _told(event, text_of) if name is None else f"{name}\n{_told(event, text_of)}"
        at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": look.fg}
        axes.text(x, row, label, bbox=paper, **at)
    axes.set_yticks(range(len(LANES)), list(LANES))
    kinds = [event.kind for event in known]
    axes.set_xticks(range(len(known)), kinds, rotation=40, ha="right", size=8)
    axes.set(xlim=(-0.6, len(known) - 0.4), ylim=(len(LANES) - 0.5, -0.5))
    names = [f"{e.kind} {getattr(e, 'request_id', '')}".strip() for e in known]
    figure.tell(f"One line through five rows: {', '.join(names)}.")
    return figure


def _told(event: Any, text_of: Callable[[int], str]) -> str:
    match event.kind:
        case "step_began":
            return f"{event.budget}\nto spend"
        case "step_ended":
            return f"{event.num_tokens}\nspent"
        case "admitted":
            return "boards"
        case "scheduled":
            return "1 token" if event.num_tokens == 1 else f"{event.num_tokens} tokens"
        case "allocated":
            return f"+{len(event.block_ids)} blocks" if len(event.block_ids) > 1 else "+1 block"
        case "freed":
            return f"-{len(event.block_ids)} blocks" if len(event.block_ids) > 1 else "-1 block"
        case "computed":
            return f"{event.num_computed_tokens} done"
        case "token":
            return text_of(event.token_id)
        case _:
            return str(event.reason)
