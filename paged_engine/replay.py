"""From events to state: what the pool and the requests look like after any prefix of a log.

`reduce(state, event)` is the whole rule.  After `events[:k]` the result equals
`ContinuousEngine.snapshot()` as it was then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError

_UNFINISHED = frozenset({"waiting", "running", "preempted"})


@dataclass(slots=True)
class RequestState:
    """A request as the events tell it; `status` is the value of its RequestStatus."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    status: str = "waiting"
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)


@dataclass(slots=True)
class BlockState:
    """A block: how many tables hold it, and its hash while it can be found by content."""

    ref_cnt: int = 0
    block_hash: int | None = None


@dataclass(slots=True)
class EngineState:
    """Everything that scheduling depends on, at one moment."""

    block_size: int = 0
    num_usable: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    blocks: list[BlockState] = field(default_factory=list)
    requests: dict[str, RequestState] = field(default_factory=dict)

    @property
    def num_used(self) -> int:
        return sum(block.ref_cnt > 0 for block in self.blocks)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but that can be found by content."""
        return sum(b.ref_cnt == 0 and b.block_hash is not None for b in self.blocks)

    def owners(self) -> dict[int, list[str]]:
        """For each used block the requests whose tables hold it."""
        owners: dict[int, list[str]] = {}
        for request in self.requests.values():
            for block_id in request.block_table:
                owners.setdefault(block_id, []).append(request.request_id)
        return owners


def reduce(state: EngineState, event: ev.Event) -> EngineState:
    """Apply one event to `state`, in place, and return it.

    Finished requests are kept until `forget_finished`.
    """
    match event:
        case ev.EngineStarted():
            state.block_size = event.block_size
            state.num_usable = event.num_blocks
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
            state.blocks = [BlockState() for _ in range(event.num_blocks)]
        case ev.Queued():
            state.requests[event.request_id] = RequestState(
                event.request_id, event.prompt_token_ids
            )
        case ev.Admitted():
            request = _find(state, event.request_id)
            request.status = "running"
            request.num_computed_tokens = event.num_cached_tokens
        case ev.Hit() | ev.Allocated():
            _find(state, event.request_id).block_table.extend(event.block_ids)
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt += 1
        case ev.Freed():
            table = _find(state, event.request_id).block_table
            del table[len(table) - len(event.block_ids) :]
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt -= 1
        case ev.Cached():
            state.blocks[event.block_id].block_hash = event.block_hash
        case ev.Evicted():
            state.blocks[event.block_id].block_hash = None
        case ev.Preempted():
            _set_waiting(state, event.request_id, "preempted")
        case ev.Requeued():
            _set_waiting(state, event.request_id, event.status)
        case ev.Computed():
            _find(state, event.request_id).num_computed_tokens = event.num_computed_tokens
        case ev.Token():
            request = _find(state, event.request_id)
            request.num_computed_tokens = request.num_tokens
            request.output_token_ids.append(event.token_id)
        case ev.Finished():
            _find(state, event.request_id).status = event.reason
        case ev.Aborted():
            _find(state, event.request_id).status = "abort"
        case ev.PoolResized():
            state.num_usable = event.num_usable
        case ev.ParametersChanged():
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
        case ev.StepBegan() | ev.StepEnded() | ev.Scheduled() | ev.Copied():
            pass  # they say what is computed, and change nothing that is kept
        case _:
            raise PagedEngineError(f"no rule for {event!r}; teach replay.reduce this event")
    return state


def replay(events: Iterable[ev.Event], state: EngineState | None = None) -> EngineState:
    """The state after `events`, from an empty one or from `state`, which is changed."""
    state = EngineState() if state is None else state
    for event in events:
        reduce(state, event)
    return state


def forget_finished(state: EngineState) -> EngineState:
    """Drop the requests that have ended, as the engine does."""
    state.requests = {k: r for k, r in state.requests.items() if r.status in _UNFINISHED}
    return state


def copy_state(state: EngineState) -> EngineState:
    """One that changes apart from it."""
    return replace(
        state,
        blocks=[replace(block) for block in state.blocks],
        requests={
            name: replace(
                request,
                output_token_ids=list(request.output_token_ids),
                block_table=list(request.block_table),
            )
            for name, request in state.requests.items()
        },
    )


def _find(state: EngineState, request_id: str) -> RequestState:
    try:
        return state.requests[request_id]
    except KeyError:
        raise PagedEngineError(
            f"an event is about request {request_id!r}, which was never queued in this log; "
            f"replay from the first event on"
        ) from None


def _set_waiting(state: EngineState, request_id: str, status: str) -> None:
    request = _find(state, request_id)
    request.status = status
    request.num_computed_tokens = 0
