"""The bug hunt of notebook 05: a running request that now and then gets no token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.request import Request
from paged_engine.scheduler import Scheduler, SchedulerOutput

_sound_update = Scheduler.update


def _update(self: Scheduler, output: SchedulerOutput, sampled: Mapping[str, int]) -> list[Request]:
    """Leaves who finished in the list of the running, for the next step to take out."""
    running = self.running
    finished = _sound_update(self, output, sampled)
    self.running = running
    return finished


def _schedule_running(self: Scheduler, output: SchedulerOutput) -> int:
    """As the package's, but takes requests out of the list that it walks along."""
    budget = self.max_num_batched_tokens
    for place, request in enumerate(self.running):
        if request.is_finished:
            self.running.remove(request)
            continue
        if budget == 0:
            break
        behind = len(self.running) - place - 1
        left = request.num_tokens - request.num_computed_tokens
        num_tokens = min(left, max(1, budget - behind))
        if not self._grow(request, num_tokens, output):
            break
        output.scheduled[request] = num_tokens
        budget -= num_tokens
    return budget


@contextmanager
def _inject() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(replaced(Scheduler, "update", _update))
        stack.enter_context(replaced(Scheduler, "_schedule_running", _schedule_running))
        yield


hunt(
    Hunt(
        "05",
        inject=_inject,
        suspects={
            "A": "The budget is spent before the last in line is reached.",
            "B": "The request is preempted, and admitted again a step later.",
            "C": "Finished requests are removed from the running list in a loop over that list.",
            "D": "max_num_seqs counts who has finished, so somebody must give up a seat.",
        },
        guilty="C",
        reasons={
            "A": "Look at the bars below the lanes: in step 5 three tokens of the 16 are spent.",
            "B": "A preempted request gives its blocks back and is marked with a cross; the log "
            "has no such event.",
            "C": "The loop stands at place i, removes that request, and all behind it move up by "
            "one; place i + 1 is then the one after the next, and the next is passed over.",
            "D": "There are seats for all five from the start, and nobody waits; a seat too few "
            "would keep a newcomer out, not silence one who runs.",
        },
        source="vLLM had this loop in its abort, pull request 969; its issue 49097 tells of a "
        "running request silently skipped for a step, by another slip with the same list",
    )
)
