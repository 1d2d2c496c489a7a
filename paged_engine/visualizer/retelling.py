"""What a reducer makes of a run, told as events again, so that everything drawn is its state.

    retell(log, reduce)                        a log of what `reduce` understood
    EngineView.replay(log, reducer=reduce)     the live view, driven by it

With `replay.reduce` the events come out as they went in.  With a reader's own, a rule that is
missing or wrong is seen: the picture shows the state that the reader's function arrives at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import BlockState, EngineState, RequestState, copy_state, reduce

Reducer = Callable[[EngineState, ev.Event], EngineState]

_UNFINISHED = ("waiting", "running", "preempted")


def retell(
    events: Iterable[ev.Event], reducer: Reducer, state: EngineState | None = None
) -> Iterator[ev.Event]:
    """The events that lead through the states at which `reducer` arrives.

    Args:
        events: What happened.
        reducer: Given the state and the next event, it returns the state after it.
        state: Before the first event; None: an empty one.
    """
    retelling = Retelling(reducer, state)
    for event in events:
        yield from retelling.tell(event)


class Retelling:
    """Retells a run event by event, as it comes.

    Args:
        reducer, state: As of :func:`retell`.
    """

    def __init__(self, reducer: Reducer, state: EngineState | None = None) -> None:
        self._reducer = reducer
        self._state = EngineState() if state is None else copy_state(state)  # the reducer's
        self._told = copy_state(self._state)  # what all that was told so far amounts to

    def tell(self, event: ev.Event) -> list[ev.Event]:
        """What to say instead of `event`.

        Raises:
            PagedEngineError: The reducer returned no state, or one that no pool can have.
        """
        self._state = self._reducer(self._state, event)
        if not isinstance(self._state, EngineState):
            raise PagedEngineError(
                f"the reducer returned {self._state!r} at a {event.kind} event; expected the "
                f"state, also where nothing changes"
            )
        if isinstance(event, ev.Scheduled):  # of who is not known to run nothing is computed
            known = self._told.requests.get(event.request_id)
            return [event] if known is not None and known.status == "running" else []
        whole = self._after([event])
        if whole is not None and _alike(whole, self._state):
            self._told = whole
            return [event]
        told = list(_changes(self._told, self._state, event))
        after = self._after(told)
        if after is None:
            raise PagedEngineError(
                f"after a {event.kind} event the reducer's state has a table with a block that "
                f"the pool has not; it has {len(self._told.blocks)} blocks, from 0 on"
            )
        self._told = after
        return told

    def _after(self, events: list[ev.Event]) -> EngineState | None:
        """The state once these were told as well; None where they cannot be."""
        state = copy_state(self._told)
        try:
            for event in events:
                reduce(state, event)
        except (PagedEngineError, IndexError):
            return None
        return state


def _alike(told: EngineState, wanted: EngineState) -> bool:
    """Whether a picture of one is a picture of the other.

    Requests that ended may be forgotten; how often a block is held is told by the tables.
    """
    if _limits(told) != _limits(wanted) or _hashes(told) != _hashes(wanted, len(told.blocks)):
        return False
    if not wanted.requests.keys() <= told.requests.keys():
        return False
    for name, request in told.requests.items():
        other = wanted.requests.get(name)
        if other is None and (request.status in _UNFINISHED or request.block_table):
            return False
        if other is not None and request != other:
            return False
    return True


def _changes(told: EngineState, wanted: EngineState, event: ev.Event) -> Iterator[ev.Event]:
    """Events that lead from one state to the other, all at the time of `event`."""
    time, step = event.time, event.step
    if isinstance(event, (ev.EngineStarted, ev.StepBegan, ev.StepEnded)):
        yield event  # the frame in which the rest is seen: the reducer has no say in it
    usable, *limits = _limits(wanted)
    if told.blocks and usable not in (0, told.num_usable):  # 0 is a limit that was not read
        yield ev.PoolResized(time, step, usable)
    if told.blocks and all(limits) and limits != _limits(told)[1:]:
        yield ev.ParametersChanged(time, step, *limits)
    for name, request in wanted.requests.items():
        if name not in told.requests:
            if isinstance(event, ev.Queued) and event.request_id == name:
                yield event
            else:
                yield ev.Queued(time, step, name, request.prompt_token_ids, 0, 0, 0)
    for name in {**told.requests, **wanted.requests}:
        before = told.requests.get(name) or RequestState(name, ())
        yield from _of_request(before, wanted.requests.get(name), event)
    pairs = zip(_hashes(told), _hashes(wanted, len(told.blocks)), strict=True)
    for block_id, (old, new) in enumerate(pairs):
        if new is None and old is not None:
            yield ev.Evicted(time, step, block_id)
        elif new is not None and new != old:
            yield ev.Cached(time, step, block_id, new)


def _of_request(
    before: RequestState, after: RequestState | None, event: ev.Event
) -> Iterator[ev.Event]:
    """What became of one request; None: it was forgotten."""
    name, time, step = before.request_id, event.time, event.step
    old, new = before.block_table, [] if after is None else after.block_table
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    same = min(len(old), len(new)) if same is None else same
    if len(old) > same:
        yield ev.Freed(time, step, name, tuple(old[same:]))
    if after is None:
        if before.status in _UNFINISHED:
            ended = isinstance(event, ev.Finished) and event.request_id == name
            yield event if ended else ev.Aborted(time, step, name)
        return
    text = str(getattr(event, "text", "")) if getattr(event, "request_id", "") == name else ""
    computed = before.num_computed_tokens
    if after.status != before.status:
        yield _of_status(after, event, text)
        computed = after.num_computed_tokens if after.status == "running" else computed
        computed = 0 if after.status in ("waiting", "preempted") else computed
    if len(new) > same:
        kind = ev.Hit if isinstance(event, ev.Hit) else ev.Allocated
        yield kind(time, step, name, tuple(new[same:]))
    for place in range(len(before.output_token_ids), len(after.output_token_ids)):
        yield ev.Token(time, step, name, after.output_token_ids[place], text)
        computed, text = len(after.prompt_token_ids) + place, ""
    if computed != after.num_computed_tokens:
        yield ev.Computed(time, step, name, after.num_computed_tokens)


def _of_status(request: RequestState, event: ev.Event, text: str) -> ev.Event:
    time, step, name = event.time, event.step, request.request_id
    match request.status:
        case "running":
            return ev.Admitted(time, step, name, request.num_computed_tokens)
        case "preempted" if not isinstance(event, ev.Requeued):
            return ev.Preempted(time, step, name)
        case "waiting" | "preempted":
            return ev.Requeued(time, step, name, request.status)
        case "abort":
            return ev.Aborted(time, step, name)
        case _:
            return ev.Finished(time, step, name, str(request.status), text)


def _limits(state: EngineState) -> list[int]:
    return [state.num_usable, state.max_num_seqs, state.max_num_batched_tokens]


def _hashes(state: EngineState, number: int | None = None) -> list[int | None]:
    """Of each block; of as many as `number` says."""
    blocks = state.blocks
    if number is not None:
        blocks = [*blocks[:number], *(BlockState() for _ in range(number - len(blocks)))]
    return [block.block_hash for block in blocks]
