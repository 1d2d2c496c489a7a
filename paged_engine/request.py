"""What one request is, what it asks for, which states it passes through, what it yields."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from paged_engine.errors import IllegalTransitionError, InvalidRequestError

DEFAULT_MAX_TOKENS = 128


class RequestStatus(Enum):
    """Where a request stands.  `LEGAL_TRANSITIONS` says what may follow what."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "stop"
    FINISHED_LENGTH = "length"
    FINISHED_ABORTED = "abort"
    FINISHED_IGNORED = "ignored"
    FINISHED_ERROR = "error"

    @property
    def is_finished(self) -> bool:
        return self not in _UNFINISHED


# A tuple is searched without hashing, which of an enum takes long.
_UNFINISHED = (RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.PREEMPTED)
_CUT_SHORT = frozenset(
    {
        RequestStatus.FINISHED_ABORTED,
        RequestStatus.FINISHED_IGNORED,
        RequestStatus.FINISHED_ERROR,
    }
)
_ALL_FINISHED = frozenset(RequestStatus).difference(_UNFINISHED)

LEGAL_TRANSITIONS: dict[RequestStatus, frozenset[RequestStatus]] = {
    RequestStatus.WAITING: _CUT_SHORT | {RequestStatus.RUNNING},
    # back to WAITING only when the step that admitted it is rolled back
    RequestStatus.RUNNING: _ALL_FINISHED | {RequestStatus.PREEMPTED, RequestStatus.WAITING},
    RequestStatus.PREEMPTED: _CUT_SHORT | {RequestStatus.RUNNING},
} | {status: frozenset() for status in _ALL_FINISHED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen and when it ends.

    Args:
        temperature: 0 takes the most likely token; 1 samples from the model's own
            distribution; above flattens it.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens until their probability reaches p, the one
            that crosses it included (Holtzman et al. 2020, arXiv 1904.09751).
        min_p: Keep tokens at least this fraction as likely as the most likely one
            (Nguyen et al. 2024, arXiv 2407.01082).
        repetition_penalty: Divides positive and multiplies negative logits of tokens
            seen in prompt or output (Keskar et al. 2019, arXiv 1909.05858).
        presence_penalty: Subtracted from the logit of each token in the output.
        frequency_penalty: Subtracted once for each time it is in the output.
        seed: Fixes the draw of this request whatever else is in the batch.
            None: drawn when the request is added, and recorded.
        max_tokens: The most tokens to generate.  None: as many as fit.
        min_tokens: No stop of any kind (but max_tokens) before so many.
        stop: Strings that end the output; the text ends before them.
        stop_token_ids: Tokens that end the output; they are kept in `token_ids`.
        ignore_eos: Do not stop at the model's end-of-sequence token.
        n: Independent samples of the same prompt.
        logprobs: Log-probabilities to report a token: the chosen one and this many of
            the most likely, before temperature and penalties.  None: none.

    Raises:
        InvalidRequestError: A value is of the wrong type, NaN, or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Collection[int] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _check_strings("stop", self.stop)
        object.__setattr__(self, "stop", tuple(self.stop))
        _check_ids("stop_token_ids", self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", frozenset(self.stop_token_ids))
        _check_number("temperature", self.temperature, low=0.0)
        _check_number("top_p", self.top_p, above=0.0, high=1.0)
        _check_number("min_p", self.min_p, low=0.0, high=1.0)
        _check_number("repetition_penalty", self.repetition_penalty, above=0.0)
        _check_number("presence_penalty", self.presence_penalty)
        _check_number("frequency_penalty", self.frequency_penalty)
        _check_integer("top_k", self.top_k, low=0)
        _check_integer("min_tokens", self.min_tokens, low=0)
        _check_integer("n", self.n, low=1)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, low=1)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens is {self.min_tokens}, more than max_tokens "
                    f"({self.max_tokens}); lower one or raise the other"
                )
        if self.seed is not None:
            _check_integer("seed", self.seed)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, low=0)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(f"ignore_eos is {self.ignore_eos!r}; expected True or False")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(eq=False, slots=True)
class Request:
    """One sequence that the engine computes.

    The whole state of progress is two numbers: `num_tokens` are known, and
    `num_computed_tokens` of them have their keys and values in the cache.  Prefill,
    decode, chunks, prefix hits and resuming after preemption are all the second
    catching up with the first (the idea is vLLM v1's).

    A request with `n > 1` becomes n of these, alike but for `sample_index`; all but the
    first name the first as `fork_of` and share the blocks of its prompt.

    Attributes:
        token_ids: Prompt and output, in order.
        num_computed_tokens: How many of `token_ids` have their KV in the cache.
        num_cached_tokens: How many of those the last admission took from the prefix cache.
        block_table: Ids of the blocks that hold its KV; position p lies in
            `block_table[p // block_size]`.
        queue_key: Where it stands in line; set by the scheduler.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = DEFAULT_MAX_TOKENS
    eos_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    priority: int = 0
    sample_index: int = 0
    fork_of: Request | None = None

    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    stop_reason: int | str | None = None
    queue_key: tuple[int, int] = (0, 0)

    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.status not in _UNFINISHED

    def set_status(self, status: RequestStatus) -> None:
        """Move to `status`.

        Raises:
            IllegalTransitionError: The present status does not lead there.
        """
        if status not in LEGAL_TRANSITIONS[self.status]:
            allowed = ", ".join(sorted(s.name for s in LEGAL_TRANSITIONS[self.status]))
            raise IllegalTransitionError(
                f"request {self.request_id!r} is {self.status.name} and cannot become "
                f"{status.name}; expected {allowed or 'no further change, it is finished'}"
            )
        self.status = status

    def append_token(self, token_id: int) -> None:
        """Take one sampled token, and finish if it is the last.

        Raises:
            IllegalTransitionError: The request is not running.
        """
        if self.status is not RequestStatus.RUNNING:
            raise IllegalTransitionError(
                f"request {self.request_id!r} is {self.status.name} and was given token "
                f"{token_id}; only a running request takes tokens"
            )
        self.token_ids.append(token_id)
        if self.num_output_tokens >= self.params.min_tokens and self._stops_at(token_id):
            self.stop_reason = token_id
            self.set_status(RequestStatus.FINISHED_STOPPED)
        elif self.num_output_tokens >= self.max_tokens:
            self.set_status(RequestStatus.FINISHED_LENGTH)

    def _stops_at(self, token_id: int) -> bool:
        if token_id in self.params.stop_token_ids:
            return True
        return token_id in self.eos_token_ids and not self.params.ignore_eos

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.name}, computed "
            f"{self.num_computed_tokens} of {self.num_tokens}, blocks {self.block_table})"
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a chosen token, and the most likely ones beside it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request reached each stage, in seconds of the engine's clock; None: not yet."""

    arrival: float
    first_scheduled: float | None
    first_token: float | None
    finished: float | None

    @property
    def ttft(self) -> float | None:
        """Time to first token, in seconds."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def e2e(self) -> float | None:
        """End-to-end latency, in seconds."""
        return None if self.finished is None else self.finished - self.arrival


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample of a request so far.

    `new_token_ids` and `new_text` are what the last step added; text is held back while
    it may be the beginning of a stop string or of a character of several bytes.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    new_token_ids: tuple[int, ...] = ()
    new_text: str = ""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What a request has yielded so far: a value that never changes once handed out.

    `token_ids`, `text`, `finish_reason` and `logprobs` are those of the first completion;
    `completions` has all `n`.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    timing: Timing
    num_cached_tokens: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completions[0].token_ids

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.completions[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.completions[0].logprobs

    @property
    def finished(self) -> bool:
        return all(c.finish_reason is not None for c in self.completions)


def check_servable(num_prompt_tokens: int, max_tokens: int, max_servable_tokens: int) -> None:
    """Refuse a request that could never be served to its end, however long it waited.

    Raises:
        InvalidRequestError: With what it needs and what there is.
    """
    needed = num_prompt_tokens + max_tokens
    if needed > max_servable_tokens:
        raise InvalidRequestError(
            f"the request needs {needed} tokens ({num_prompt_tokens} of prompt and up to "
            f"{max_tokens} of output), more than model and block pool can serve "
            f"({max_servable_tokens}); shorten the prompt, lower max_tokens, or give the engine "
            f"more blocks (num_blocks or kv_cache_memory) if the model takes more"
        )


_LARGEST = 1e30  # fp32 holds it, and what comes of it and a logit


def _check_number(
    name: str,
    value: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> None:
    expected = "a finite number"
    if low is not None:
        expected += f" of at least {low:g}"
    if above is not None:
        expected += f" above {above:g}"
    expected += f", below {_LARGEST:g} in size" if high is None else f" and at most {high:g}"
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST
    if (
        not ok
        or (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        raise InvalidRequestError(f"{name} is {value!r}; expected {expected}")


def _check_integer(name: str, value: Any, *, low: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        at_least = "" if low is None else f" of at least {low}"
        raise InvalidRequestError(f"{name} is {value!r}; expected a whole number{at_least}")


def _check_strings(name: str, values: Any) -> None:
    if not isinstance(values, Sequence) or any(not isinstance(v, str) or not v for v in values):
        raise InvalidRequestError(f"{name} is {values!r}; expected strings that are not empty")


def _check_ids(name: str, values: Any) -> None:
    ok = isinstance(values, Collection) and not isinstance(values, (str, bytes))
    if not ok or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise InvalidRequestError(f"{name} is {values!r}; expected token ids of at least 0")
