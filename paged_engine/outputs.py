"""What the engine keeps of each request to tell the user about it."""

from __future__ import annotations

from collections.abc import Callable

from paged_engine.detokenizer import IncrementalDetokenizer, Tokenizer
from paged_engine.request import Completion, Request, RequestOutput, Timing, TokenLogprob


class Sample:
    """One of the `n` sequences of a user's request, with its text.

    Attributes:
        failure: Why its text cannot be told, if the tokenizer failed.
    """

    def __init__(self, user: UserRequest, request: Request, tokenizer: Tokenizer | None) -> None:
        self.user = user
        self.request = request
        self._detokenizer = (
            None if tokenizer is None else IncrementalDetokenizer(tokenizer, request.params.stop)
        )
        self.failure: str | None = None
        self._logprobs: list[TokenLogprob] = []
        self._token_ids: list[int] = []  # those that were pushed: text and logprobs go with them
        self._new_token_ids: list[int] = []
        self._new_text = ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found in the text, if any."""
        return None if self._detokenizer is None else self._detokenizer.stopped_by

    def push(self, token_id: int, logprob: TokenLogprob | None) -> str:
        """Take a new token; returns the text that became readable."""
        self._token_ids.append(token_id)
        self._new_token_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        detokenizer = self._detokenizer
        if detokenizer is None:
            return ""
        return self._say(lambda: detokenizer.push(token_id, may_stop=self._may_stop))

    def finish(self) -> str:
        """No more tokens will come; returns the text that was held back."""
        detokenizer = self._detokenizer
        if detokenizer is None or self.failure is not None:
            return ""
        return self._say(lambda: detokenizer.finish(may_stop=self._may_stop))

    def completion(self) -> Completion:
        """Everything so far; what is new is handed out once."""
        request = self.request
        completion = Completion(
            index=request.sample_index,
            token_ids=tuple(self._token_ids),
            text="" if self._detokenizer is None else self._detokenizer.text,
            finish_reason=request.status.value if request.is_finished else None,
            stop_reason=request.stop_reason,
            logprobs=None if request.params.logprobs is None else tuple(self._logprobs),
            new_token_ids=tuple(self._new_token_ids),
            new_text=self._new_text,
        )
        self._new_token_ids, self._new_text = [], ""
        return completion

    def _say(self, read: Callable[[], str]) -> str:
        """The text that `read` gives; a tokenizer that fails harms this sample alone."""
        try:
            text = read()
        except Exception as error:
            self.failure = f"the tokenizer raised {type(error).__name__}: {error}"
            return ""
        self._new_text += text
        return text

    @property
    def _may_stop(self) -> bool:
        return self.request.num_output_tokens >= self.request.params.min_tokens


class UserRequest:
    """A request as its user sees it: one id, `n` samples.

    Attributes:
        inbox: Where its outputs go; None: `step` returns them.
    """

    def __init__(
        self, request_id: str, requests: list[Request], tokenizer: Tokenizer | None
    ) -> None:
        self.request_id = request_id
        self.inbox: list[RequestOutput] | None = None
        self.samples = [Sample(self, request, tokenizer) for request in requests]
        self._prompt_token_ids = tuple(requests[0].prompt_token_ids)
        self._timing: Timing | None = None  # while it cannot change

    @property
    def is_finished(self) -> bool:
        return all([sample.request.is_finished for sample in self.samples])

    def output(self) -> RequestOutput:
        """What it has yielded so far."""
        timing = self._timing
        if timing is None or self.is_finished:
            timing = self._take_timing()
        return RequestOutput(
            request_id=self.request_id,
            prompt_token_ids=self._prompt_token_ids,
            completions=tuple([sample.completion() for sample in self.samples]),
            timing=timing,
            num_cached_tokens=self.samples[0].request.num_cached_tokens,
        )

    def _take_timing(self) -> Timing:
        """Kept from the first token to the end: most outputs of a request lie between."""
        requests = [sample.request for sample in self.samples]
        timing = Timing(
            arrival=requests[0].arrival_time,
            first_scheduled=_earliest([r.first_scheduled_time for r in requests]),
            first_token=_earliest([r.first_token_time for r in requests]),
            finished=_latest([r.finished_time for r in requests]),
        )
        self._timing = timing if timing.first_token is not None else None
        return timing


def _earliest(times: list[float | None]) -> float | None:
    return min([time for time in times if time is not None], default=None)


def _latest(times: list[float | None]) -> float | None:
    """None as long as one is missing."""
    known = [time for time in times if time is not None]
    return max(known) if len(known) == len(times) else None
