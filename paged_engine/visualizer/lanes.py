"""What a log says of each request and of each step, ready to be drawn.

Step s covers the stretch from s - 1 to s; what happens between two steps lies on their border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import EngineState, reduce


@dataclass(slots=True)
class Lane:
    """The life of one request.

    Attributes:
        number: Its place in order of arrival, which decides its colour.
        queued: The border at which it arrived.
        injected: Whether others were being served when it arrived.
        admitted: The steps in which it was let into the batch.
        waits: Stretches in which it waited.
        chunks: (step, tokens) for each piece of prompt, or of what is computed again.
        decodes: Stretches in which it got one token a step.
        preempted: The steps in which it lost its blocks.
        ended: (border, reason), or None.
    """

    request_id: str
    number: int
    num_prompt_tokens: int
    queued: int
    injected: bool
    admitted: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    waits: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    decodes: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    ended: tuple[int, str] | None = None
    num_output_tokens: int = 0
    waiting_since: int | None = None

    def stop_waiting(self, border: int) -> None:
        """Close the present stretch of waiting, if there is one."""
        if self.waiting_since is not None and border > self.waiting_since:
            self.waits.append((self.waiting_since, border))
        self.waiting_since = None

    def compute(self, step: int, num_tokens: int) -> bool:
        """Take in what was scheduled; returns whether it was a decode."""
        if num_tokens > 1 or self.num_output_tokens == 0:
            self.chunks.append((step, num_tokens))
            return False
        if self.decodes and self.decodes[-1][1] == step - 1:
            self.decodes[-1] = (self.decodes[-1][0], step)
        else:
            self.decodes.append((step - 1, step))
        return True


@dataclass(slots=True)
class Step:
    """One step: its budget, what was computed, and how many blocks were in use at its end."""

    number: int
    budget: int
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_used_blocks: int = 0
    failed: bool = False


@dataclass(slots=True)
class Run:
    """A whole log: its lanes in order of arrival, its steps, and its last state."""

    lanes: list[Lane]
    steps: list[Step]
    state: EngineState

    @property
    def busiest_step(self) -> int:
        """The first step at whose end the most blocks were in use; 0 before any step."""
        most = max((step.num_used_blocks for step in self.steps), default=0)
        return next((s.number for s in self.steps if s.num_used_blocks == most), 0)


def whole(log: Iterable[ev.Event]) -> list[ev.Event]:
    """All events of a log that begins at the start.

    Raises:
        PagedEngineError: Its oldest events were dropped, or it is of another beginning.
    """
    events = list(log)
    if not events or not isinstance(events[0], ev.EngineStarted):
        raise PagedEngineError(
            "this log does not begin with engine_started, so no state can be told from it; give "
            "all events of an engine, and the engine a larger max_events if it dropped some"
        )
    return events


def state_at(log: Iterable[ev.Event], step: int | None = None) -> EngineState:
    """The state at the end of a step, finished requests included.

    Args:
        log: All events of an engine.
        step: Its number, from 1; 0 is before the first; None: now.

    Raises:
        PagedEngineError: There was no such step, or the log is not whole.
    """
    state = EngineState()
    reached = step is None
    for event in whole(log):
        if step == 0 and isinstance(event, ev.StepBegan):
            break
        reduce(state, event)
        if isinstance(event, ev.StepEnded) and event.step == step:
            reached = True
            break
    if not reached and step != 0:
        raise PagedEngineError(f"no step {step} ended in this log; expected 0 to its last one")
    return state


def read_run(log: Iterable[ev.Event]) -> Run:
    """Reduce a log to lanes and steps.

    Raises:
        PagedEngineError: The log is not whole.
    """
    run = Run([], [], EngineState())
    current: dict[str, Lane] = {}
    pending: list[ev.Scheduled] = []
    for event in whole(log):
        reduce(run.state, event)
        match event:
            case ev.Queued():
                number = list(run.state.requests).index(event.request_id)
                busy = any(r.status == "running" for r in run.state.requests.values())
                lane = Lane(event.request_id, number, len(event.prompt_token_ids), event.step, busy)
                lane.waiting_since = event.step
                run.lanes.append(lane)
                current[event.request_id] = lane
            case ev.Admitted():
                lane = current[event.request_id]
                lane.stop_waiting(event.step - 1)
                if not lane.admitted:
                    lane.num_cached_tokens = event.num_cached_tokens
                lane.admitted.append(event.step)
            case ev.Preempted():
                lane = current[event.request_id]
                lane.preempted.append(event.step)
                lane.waiting_since = event.step
            case ev.Requeued():
                lane = current[event.request_id]
                lane.admitted.pop()
                lane.waiting_since = event.step
            case ev.Token():
                current[event.request_id].num_output_tokens += 1
            case ev.Finished() | ev.Aborted():
                lane = current[event.request_id]
                lane.stop_waiting(event.step)
                reason = event.reason if isinstance(event, ev.Finished) else "abort"
                lane.ended = (event.step, reason)
            case ev.StepBegan():
                run.steps.append(Step(event.step, event.budget))
                pending = []
            case ev.Scheduled():
                pending.append(event)
                # counted at once: a first token arrives before the step ends
                _count(run.steps[-1], current[event.request_id], event)
            case ev.StepEnded():
                _end_step(run, current, pending, event.failed)
            case _:
                pass
    last = run.steps[-1].number if run.steps else 0
    for lane in run.lanes:
        lane.stop_waiting(last)
    return run


def _count(step: Step, lane: Lane, event: ev.Scheduled) -> None:
    if lane.compute(event.step, event.num_tokens):
        step.num_decode_tokens += event.num_tokens
    else:
        step.num_prefill_tokens += event.num_tokens


def _end_step(
    run: Run, current: dict[str, Lane], scheduled: list[ev.Scheduled], failed: bool
) -> None:
    step = run.steps[-1]
    step.num_used_blocks = run.state.num_used
    step.failed = failed
    if not failed:
        return
    step.num_prefill_tokens = step.num_decode_tokens = 0
    for event in scheduled:  # nothing of it was computed
        lane = current[event.request_id]
        lane.chunks = [c for c in lane.chunks if c[0] != step.number]
        if lane.decodes and lane.decodes[-1][1] == step.number:
            start, end = lane.decodes.pop()
            lane.decodes += [(start, end - 1)] if end - 1 > start else []
