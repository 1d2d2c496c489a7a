"""Solutions of notebook 09: from events to state, any moment of a run, and what always holds."""

# As they stand in the notebook, where nothing is annotated.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type"

from __future__ import annotations

from paged_engine.lessons.growing import add_to_class
from paged_engine.replay import BlockState, EngineState, RequestState, copy_state


def lives(state, event):
    """Who waits, runs or has ended, and with which tokens."""
    name = getattr(event, "request_id", None)
    request = state.requests.get(name)
    match event.kind:
        case "queued":
            state.requests[name] = RequestState(name, event.prompt_token_ids)
        case "admitted":
            request.status = "running"
            request.num_computed_tokens = event.num_cached_tokens
        case "computed":
            request.num_computed_tokens = event.num_computed_tokens
        case "token":  # all that it knew is computed; the new one is not
            request.num_computed_tokens = request.num_tokens
            request.output_token_ids.append(event.token_id)
        case "preempted" | "requeued":  # requeued: the step that admitted it failed
            request.status = getattr(event, "status", "preempted")
            request.num_computed_tokens = 0
        case "finished" | "aborted":
            request.status = getattr(event, "reason", "abort")
    return state


def reduce(state, event):
    """The state after `event`: `lives`, and what becomes of the blocks."""
    match event.kind:
        case "engine_started":
            state.blocks = [BlockState() for _ in range(event.num_blocks)]
            state.num_usable, state.block_size = event.num_blocks, event.block_size
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
        case "pool_resized":
            state.num_usable = event.num_usable
        case "parameters_changed":
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
        case "hit" | "allocated":
            state.requests[event.request_id].block_table += event.block_ids
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt += 1
        case "freed":
            table = state.requests[event.request_id].block_table
            del table[len(table) - len(event.block_ids) :]
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt -= 1
        case "cached" | "evicted":
            state.blocks[event.block_id].block_hash = getattr(event, "block_hash", None)
        case _:
            return lives(state, event)
    return state


class History:
    """Any moment of a run: a copy of the state before every so many events."""

    def __init__(self, events, reduce, every=32):
        self.events, self.reduce, self.every = list(events), reduce, every
        self.keys = []  # the states before event 0, `every`, 2 * `every`, ...
        state = EngineState()
        for k, event in enumerate(self.events):
            if k % every == 0:
                self.keys.append(copy_state(state))
            state = reduce(state, event)


def at(self, k):
    """The state after the first k events, in at most `every` calls of `reduce`."""
    place = min(k // self.every, len(self.keys) - 1)
    state = copy_state(self.keys[place])
    for event in self.events[place * self.every : k]:
        state = self.reduce(state, event)
    return state


def broken(state):
    """The names of the invariants that do not hold in `state`."""
    found = set()
    held = [0] * len(state.blocks)
    for request in state.requests.values():
        for block_id in request.block_table:
            held[block_id] += 1
        if request.block_table and request.status != "running":
            found.add("idle")
    for block, times in zip(state.blocks, held, strict=True):
        if block.ref_cnt != times:
            found.add("count")
        if times > 1 and block.block_hash is None:
            found.add("shared")
    return found


add_to_class(History)(at)
