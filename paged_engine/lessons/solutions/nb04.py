"""Notebook 04: the solutions of its exercises, for whoever has not passed them yet.

And `Request`, the class that they are methods of, for the notebooks that build on it.
"""

# As they stand in the notebook, where nothing is annotated.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, var-annotated"

from paged_engine.errors import IllegalTransitionError
from paged_engine.lessons.growing import add_to_class
from paged_engine.request import RequestStatus

S = RequestStatus
CUT_SHORT = {S.FINISHED_ABORTED, S.FINISHED_IGNORED, S.FINISHED_ERROR}
LEGAL = {
    S.WAITING: CUT_SHORT | {S.RUNNING},
    S.RUNNING: {s for s in S if s.is_finished} | {S.PREEMPTED, S.WAITING},
    S.PREEMPTED: CUT_SHORT | {S.RUNNING},
}


def set_status(self, status):
    """Move to `status`, if the present one leads there."""
    if status not in LEGAL.get(self.status, ()):
        why = f"{self.request_id} is {self.status.name} and cannot become {status.name}"
        raise IllegalTransitionError(why)
    self.status = status


def append_token(self, token_id):
    """Take one token, and end with it if it is the last."""
    if self.status is not RequestStatus.RUNNING:
        why = f"{self.request_id} is {self.status.name} and takes no token"
        raise IllegalTransitionError(why)
    self.token_ids.append(token_id)
    if token_id in self.eos_token_ids:
        self.set_status(RequestStatus.FINISHED_STOPPED)
    elif self.num_output_tokens >= self.max_tokens:
        self.set_status(RequestStatus.FINISHED_LENGTH)


def state_of(events):
    """For each request (status, tokens known, tokens computed), from events alone."""
    states = {}
    for event in events:
        name = getattr(event, "request_id", None)
        status, known, computed = states.get(name, (None, 0, 0))
        match event.kind:
            case "queued":
                status, known = RequestStatus.WAITING, len(event.prompt_token_ids)
            case "admitted":
                status, computed = RequestStatus.RUNNING, event.num_cached_tokens
            case "computed":
                computed = event.num_computed_tokens
            case "token":
                known, computed = known + 1, known
            case "preempted":
                status, computed = RequestStatus.PREEMPTED, 0
            case "finished":
                status = RequestStatus(event.reason)
            case "aborted":
                status = RequestStatus.FINISHED_ABORTED
            case _:
                continue
        states[name] = (status, known, computed)
    return states


class Request:
    """As the notebook begins it; what it grows is above."""

    def __init__(self, request_id, prompt_token_ids, max_tokens, eos_token_ids=()):
        self.request_id = request_id
        self.token_ids = list(prompt_token_ids)  # a copy: it will grow
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.max_tokens = max_tokens
        self.eos_token_ids = eos_token_ids
        self.status = RequestStatus.WAITING

    @property
    def num_tokens(self):
        return len(self.token_ids)

    @property
    def num_output_tokens(self):
        return self.num_tokens - self.num_prompt_tokens

    @property
    def is_finished(self):
        return self.status.is_finished

    def __repr__(self):
        done = f"{self.num_computed_tokens} of {self.num_tokens}"
        return f"{self.request_id}: {self.status.name}, {done} computed"


add_to_class(Request)(set_status)
add_to_class(Request)(append_token)
