"""The bug hunt of notebook 04: requests that get a token after their last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.protocols import SchedulerOutput
from paged_engine.request import Request
from paged_engine.scheduler import Scheduler


@contextmanager
def _inject() -> Iterator[None]:
    """The token of a step that computed more than one is not asked whether it is the last."""
    real_update, real_append = Scheduler.update, Request.append_token

    def update(
        self: Scheduler, output: SchedulerOutput, sampled: Mapping[str, int]
    ) -> list[Request]:
        many = {request for request, num_tokens in output.scheduled.items() if num_tokens > 1}

        def append_token(request: Request, token_id: int) -> None:
            if request in many:
                request.token_ids.append(token_id)
            else:
                real_append(request, token_id)

        with replaced(Request, "append_token", append_token):
            return real_update(self, output, sampled)

    with replaced(Scheduler, "update", update):
        yield


hunt(
    Hunt(
        "04",
        inject=_inject,
        suspects={
            "A": "The limit is compared with > in place of >=: whoever ends by length gets one "
            "token more.",
            "B": "Only decode steps ask whether the new token is the last. One that comes out of "
            "a longer step is never asked.",
            "C": "A preempted request forgets its output and counts from zero when it is back.",
            "D": "A request that is aborted while its batch is in flight takes that batch's token.",
        },
        guilty="B",
        reasons={
            "A": "`first` and `four` end by length as well, and have exactly what they asked for.",
            "B": "In each wrong request the token that should have been the last came out of a "
            "step of several tokens: a prompt, or a return after preemption.",
            "C": "Then `pressed` would have received nine tokens more, not one; and `one` and "
            "`eos` were never preempted.",
            "D": "The log has no `aborted` event.",
        },
        source="an engine that had it: lvyufeng/PocketLLM, pull request 133, whose prefill had to "
        "learn to check for the end too",
    )
)
