"""The event log as plain text, which every place that shows a notebook can show."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError

_WIDEST = 44


class EventTable:
    """Events in lines of text: step, kind, request, detail.  Times are left out.

    Attributes:
        rows: The same as tuples.
    """

    def __init__(self, events: Iterable[ev.Event], num_more: int = 0) -> None:
        self.rows = [
            (str(e.step), e.kind, str(getattr(e, "request_id", "")), _detail(e)) for e in events
        ]
        self._num_more = num_more

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        table = [("step", "event", "request", "detail"), *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        lines = [
            f"{step:>{widths[0]}}  {kind:<{widths[1]}}  {name:<{widths[2]}}  {detail}".rstrip()
            for step, kind, name, detail in table
        ]
        if self._num_more:
            lines.append(f"... and {self._num_more} more")
        return "\n".join(lines)


def event_table(
    log: Iterable[ev.Event], kinds: Collection[str] | str | None = None, first: int | None = None
) -> EventTable:
    """Events as a table.

    Args:
        log: A log, or any of its events.
        kinds: Only these kinds of event; None: all.
        first: Only so many; None: all.

    Raises:
        PagedEngineError: There is no such kind, or `first` is below 0.
    """
    wanted = {kinds} if isinstance(kinds, str) else None if kinds is None else set(kinds)
    if wanted is not None and (unknown := wanted - ev.EVENT_TYPES.keys()):
        raise PagedEngineError(
            f"no event is of kind {sorted(unknown)}; expected some of {sorted(ev.EVENT_TYPES)}"
        )
    if first is not None and first < 0:
        raise PagedEngineError(f"first is {first}; expected 0 or more, or None for all")
    events = [event for event in log if wanted is None or event.kind in wanted]
    shown = events if first is None else events[:first]
    return EventTable(shown, len(events) - len(shown))


def _detail(event: ev.Event) -> str:
    match event:
        case ev.EngineStarted():
            return f"{event.num_blocks} blocks of {event.block_size} tokens"
        case ev.StepBegan():
            return f"budget of {event.budget} tokens"
        case ev.StepEnded():
            return "failed, rolled back" if event.failed else f"{event.num_tokens} tokens computed"
        case ev.Queued():
            return f"{len(event.prompt_token_ids)} prompt tokens, at most {event.max_tokens} more"
        case ev.Admitted():
            return f"{event.num_cached_tokens} tokens cached" if event.num_cached_tokens else ""
        case ev.Scheduled():
            last = event.start + event.num_tokens - 1
            at = f"position {last}" if last == event.start else f"positions {event.start} to {last}"
            return f"{event.num_tokens} token{'' if event.num_tokens == 1 else 's'}, {at}"
        case ev.Allocated() | ev.Hit() | ev.Freed():
            return _clip(f"block{'' if len(event.block_ids) == 1 else 's'} {_ids(event.block_ids)}")
        case ev.Cached() | ev.Evicted():
            return f"block {event.block_id}"
        case ev.Copied():
            return f"block {event.source} to {event.target}"
        case ev.Computed():
            return f"{event.num_computed_tokens} tokens in the cache"
        case ev.Token():
            return _clip(f"{event.token_id} {event.text!r}" if event.text else str(event.token_id))
        case ev.Finished():
            return event.reason
        case ev.Requeued():
            return event.status
        case ev.PoolResized():
            return f"{event.num_usable} blocks usable"
        case ev.ParametersChanged():
            return f"{event.max_num_seqs} requests, {event.max_num_batched_tokens} tokens a step"
        case _:
            return ""


def _ids(block_ids: tuple[int, ...]) -> str:
    """Block ids, runs of them shortened: 0 to 5, 9."""
    pieces: list[str] = []
    start = 0
    for i in range(1, len(block_ids) + 1):
        if i < len(block_ids) and block_ids[i] == block_ids[i - 1] + 1:
            continue
        run = block_ids[start:i]
        pieces.append(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
        start = i
    return ", ".join(pieces)


def _clip(words: str) -> str:
    return words if len(words) <= _WIDEST else words[: _WIDEST - 1] + "…"
