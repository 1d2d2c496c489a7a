"""Solutions of notebook 05: a scheduler that batches continuously and knows no blocks."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections import deque

from paged_engine.lessons.growing import add_to_class
from paged_engine.request import Request, RequestStatus


class Scheduler:
    """Requests in two lines; `schedule` and `update` are added below, as in the notebook."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.max_num_seqs = max_num_seqs  # seats
        self.max_num_batched_tokens = max_num_batched_tokens  # the budget of one step
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Put a request at the end of the line, at any time."""
        self.waiting.append(request)

    def abort(self, request_id: str) -> None:
        """End a request, wherever it is."""
        for line in (self.waiting, self.running):
            for request in line:
                if request.request_id == request_id:
                    line.remove(request)
                    request.set_status(RequestStatus.FINISHED_ABORTED)
                    return  # and look no further: the line has changed


def schedule(self):
    """Who computes how many tokens in the next step."""
    scheduled = {}
    budget = self.max_num_batched_tokens
    for place, request in enumerate(self.running):
        if budget == 0:
            break
        behind = len(self.running) - place - 1
        left = request.num_tokens - request.num_computed_tokens
        scheduled[request] = min(left, max(1, budget - behind))
        budget -= scheduled[request]
    while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
        request = self.waiting.popleft()
        request.set_status(RequestStatus.RUNNING)
        self.running.append(request)
        left = request.num_tokens - request.num_computed_tokens
        scheduled[request] = min(left, budget)
        budget -= scheduled[request]
    return scheduled


def update(self, scheduled, sampled):
    """Take in what the step computed; returns the requests that finished."""
    finished = []
    for request, num_tokens in scheduled.items():
        if request.is_finished:  # aborted while the step was computed
            continue
        request.num_computed_tokens += num_tokens
        if request.request_id in sampled:
            request.append_token(sampled[request.request_id])
        if request.is_finished:
            finished.append(request)
    self.running = [r for r in self.running if not r.is_finished]
    return finished


def steps_continuous(lengths, seats):
    """Steps until all have left, when a seat is given on as soon as it is free."""
    free_after = [0] * seats
    for length in lengths:
        first = free_after.index(min(free_after))
        free_after[first] += length
    return max(free_after)


add_to_class(Scheduler)(schedule)
add_to_class(Scheduler)(update)
