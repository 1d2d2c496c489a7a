"""The checks of notebook 04: legal transitions, tokens that end a request, states from events."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from paged_engine import events as ev
from paged_engine.errors import IllegalTransitionError
from paged_engine.lessons.exercises import NotYet, exercise
from paged_engine.request import LEGAL_TRANSITIONS, RequestStatus

S = RequestStatus

# ------------------------------------------------------------------ 04.1


@exercise("04.1", "15 of the 64 pairs are legal, 49 are refused, and each refusal says why")
def set_status(answer: Callable[..., Any]) -> None:
    """Every pair of statuses, against the package's own table."""
    pairs = [(old, new) for old in S for new in S]
    for old, new in sorted(pairs, key=lambda pair: pair[0] is pair[1]):
        _try_pair(answer, old, new)


def _try_pair(answer: Callable[..., Any], old: RequestStatus, new: RequestStatus) -> None:
    request = SimpleNamespace(request_id="request-7", status=old)
    pair, is_legal = f"{old.name} to {new.name}", new in LEGAL_TRANSITIONS[old]
    words = None
    try:
        answer(request, new)
    except IllegalTransitionError as error:
        words = str(error)
    except Exception as error:
        wanted = "no error" if is_legal else "IllegalTransitionError"
        hint = "it is in paged_engine.errors, imported above" if not is_legal else ""
        if isinstance(error, KeyError):
            hint = "has every status an entry in your table, an empty one at least?"
        raise NotYet(wanted, f"{type(error).__name__}: {error}", pair, hint) from None
    if is_legal and words is not None:
        raise NotYet("a legal transition", "IllegalTransitionError", pair, _why(old, new))
    if not is_legal and words is None:
        hint = _why(old, new)
        if request.status is old is not new:
            hint = "right that it did not move, but a refusal is raised, not returned"
        raise NotYet("IllegalTransitionError", "no error", pair, hint)
    wanted_status = new if is_legal else old
    if request.status is not wanted_status:
        got = getattr(request.status, "name", repr(request.status))
        hint = "set self.status, and only once you know that it is legal"
        raise NotYet(f"status {wanted_status.name} afterwards", got, pair, hint)
    for word in ("request-7", old.name, new.name):
        if words is not None and word not in words:
            hint = "name the request, and both statuses by their `name`: status.name"
            raise NotYet(f"{word!r} in the message", repr(words), pair, hint)


def _why(old: RequestStatus, new: RequestStatus) -> str:
    if old.is_finished:
        return "what is finished never changes again"
    if old is new:
        return "to stay is no transition: whoever asks for it has lost track"
    if (old, new) == (S.RUNNING, S.WAITING):
        return "a step that fails is rolled back, and whoever it let in waits again"
    if (old, new) == (S.WAITING, S.PREEMPTED):
        return "only who runs has blocks to lose"
    if (old, new) == (S.PREEMPTED, S.WAITING):
        return "it waits already; PREEMPTED says that it was here before"
    if new in (S.FINISHED_STOPPED, S.FINISHED_LENGTH):
        return "such an end comes with a token, and only who runs gets tokens"
    if new.is_finished:
        return "a user may hang up, and a fault may happen, at any time"
    return "it must get into the batch somehow"


# ------------------------------------------------------------------ 04.2


class _Request:
    """What notebook 04 has before `append_token`."""

    def __init__(self, max_tokens: int = 3, status: RequestStatus = S.RUNNING) -> None:
        self.request_id = "request-7"
        self.token_ids = [2, 5, 6, 7]  # the prompt has an eos token, as prompts may
        self.num_prompt_tokens = 4
        self.max_tokens = max_tokens
        self.eos_token_ids = frozenset({2, 3})
        self.num_computed_tokens = 4
        self.status = status

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.status.is_finished

    def set_status(self, status: RequestStatus) -> None:
        if status not in LEGAL_TRANSITIONS[self.status]:
            raise IllegalTransitionError(
                f"{self.request_id} is {self.status.name} and cannot become {status.name}"
            )
        self.status = status


# max_tokens, the tokens given, the status after each
_ENDINGS: list[tuple[int, list[int], list[RequestStatus], str]] = [
    (3, [8], [S.RUNNING], "one token of three is not the end: the prompt does not count"),
    (
        3,
        [8, 9, 8],
        [S.RUNNING, S.RUNNING, S.FINISHED_LENGTH],
        "the third token of output is its last; num_output_tokens leaves the prompt out",
    ),
    (1, [8], [S.FINISHED_LENGTH], "max_tokens=1 means one token: the first may be the last"),
    (3, [8, 3], [S.RUNNING, S.FINISHED_STOPPED], "an eos token ends it, wherever it comes"),
    (3, [2], [S.FINISHED_STOPPED], "the first token may be an eos token"),
    (2, [8, 2], [S.RUNNING, S.FINISHED_STOPPED], "at the limit an eos token still says `stop`"),
]


@exercise(
    "04.2", "only a running request takes tokens, and each ends with its last, which it keeps"
)
def append_token(answer: Callable[..., Any]) -> None:
    """Every way to end, and every status that takes no token."""
    kind = type("Request", (_Request,), {"append_token": answer})
    for max_tokens, tokens, statuses, hint in _ENDINGS:
        request = kind(max_tokens)
        when = f"max_tokens={max_tokens}, eos 2 and 3, tokens {tokens}"
        for number, (token, status) in enumerate(zip(tokens, statuses, strict=True), 1):
            _takes(request, token, when)
            got = list(request.token_ids)
            if got != [2, 5, 6, 7, *tokens[:number]]:
                kept = "append the token first, the last one too, and leave the prompt alone"
                raise NotYet(f"token_ids {[2, 5, 6, 7, *tokens[:number]]}", got, when, kept)
            if request.status is not status:
                name = getattr(request.status, "name", repr(request.status))
                raise NotYet(f"{status.name} after token {number}", name, when, hint)
            if request.num_computed_tokens != 4:
                computed = "whoever runs the model moves it, not who takes a token"
                got = request.num_computed_tokens
                raise NotYet("num_computed_tokens still 4", got, when, computed)
    for status in S:
        if status is not S.RUNNING:
            _refuses(kind(3, status), status)


def _takes(request: Any, token: int, when: str) -> None:
    try:
        request.append_token(token)
    except IllegalTransitionError as error:
        hint = "it runs: ask whether self.status is RequestStatus.RUNNING, and do not set it"
        if request.is_finished:
            hint = "it has ended already: an eos token or else the limit ends it, not both"
        raise NotYet(f"token {token} taken", f"the refusal {error}", when, hint) from None


def _refuses(request: Any, status: RequestStatus) -> None:
    when = f"a request that is {status.name} is given token 8"
    try:
        request.append_token(8)
    except IllegalTransitionError:
        pass
    except Exception as error:
        raise NotYet("IllegalTransitionError", f"{type(error).__name__}: {error}", when) from None
    else:
        hint = "only RUNNING takes tokens; who waits or was preempted computes nothing"
        raise NotYet("IllegalTransitionError", "no error", when, hint)
    if request.token_ids != [2, 5, 6, 7] or request.status is not status:
        hint = "refuse before you change anything"
        got = f"{request.token_ids}, {request.status.name}"
        raise NotYet("the request as it was", got, when, hint)


# ------------------------------------------------------------------ 04.3


def _event(kind: str, request_id: str, **details: Any) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, request_id=request_id, **details)


def _queued(name: str, length: int) -> SimpleNamespace:
    return _event("queued", name, prompt_token_ids=list(range(length)))


def _admitted(name: str, num_cached_tokens: int = 0) -> SimpleNamespace:
    return _event("admitted", name, num_cached_tokens=num_cached_tokens)


def _token(name: str) -> SimpleNamespace:
    return _event("token", name, token_id=7)


_SIX = [
    _queued("A", 4), _queued("B", 2), _admitted("A"), _token("A"), _event("preempted", "A"),
    _event("aborted", "B"),
]  # fmt: skip
_CHUNKS = [
    _queued("A", 9), _admitted("A"), _event("scheduled", "A", start=0, num_tokens=4),
    _event("computed", "A", num_computed_tokens=4), SimpleNamespace(kind="step_ended"),
    _event("computed", "A", num_computed_tokens=7), _token("A"), _token("A"),
]  # fmt: skip
_BACK = [*_CHUNKS, _event("preempted", "A"), _admitted("A", 8), _token("A")]
_STEP = ev.StepBegan(0.0, 1, 8)

_LOGS: list[tuple[str, list[Any], dict[str, tuple[RequestStatus, int, int]], str]] = [
    (
        "a request that waits", [_queued("A", 4)], {"A": (S.WAITING, 4, 0)},
        "its prompt is known, and nothing of it computed",
    ),
    (
        "the six events", _SIX, {"A": (S.PREEMPTED, 5, 0), "B": (S.FINISHED_ABORTED, 2, 0)},
        "preemption takes what was computed, and no token",
    ),
    (
        "an event of the engine that is about nobody", [_STEP, _queued("A", 4), _STEP],
        {"A": (S.WAITING, 4, 0)}, 'some have no request: getattr(event, "request_id", None)',
    ),
    (
        "a prompt of which 7 of 9 tokens are computed, in two pieces", _CHUNKS[:-2],
        {"A": (S.RUNNING, 9, 7)}, "a `computed` event says how many there are in all",
    ),
    (
        "a prompt in pieces and two tokens", _CHUNKS, {"A": (S.RUNNING, 11, 10)},
        "a token comes when all known ones are computed: the new one is not yet",
    ),
    (
        "a return with 8 tokens in the prefix cache", _BACK[:-1], {"A": (S.RUNNING, 11, 8)},
        "admitted says in num_cached_tokens where it begins",
    ),
    (
        "an end", [*_BACK, _event("finished", "A", reason="length")],
        {"A": (S.FINISHED_LENGTH, 12, 11)},
        "RequestStatus(event.reason) is the status; what has ended stays in the result",
    ),
]  # fmt: skip


@exercise("04.3", "status, known and computed of every request come out of its events alone")
def state_of(answer: Callable[..., Any]) -> None:
    """Short logs, each about one kind of event more."""
    for when, log, expected, hint in _LOGS:
        given = copy.deepcopy(log)
        try:
            got = answer(given)
        except (AttributeError, KeyError, ValueError) as error:
            raise NotYet("a dict", f"{type(error).__name__}: {error}", when, hint) from None
        if given != log:
            raise NotYet("the events as they were", "other events", when, "read, change nothing")
        if not isinstance(got, dict):
            raise NotYet("a dict", type(got).__name__, when, "is `return` outside of the loop?")
        if None in got:
            hint = "events that are about no request change nothing: skip their kinds"
        if set(got) != set(expected):
            raise NotYet(f"requests {sorted(expected)}", f"{sorted(map(str, got))}", when, hint)
        for name, state in expected.items():
            _compare(got[name], state, f"{when}, request {name}", hint)


def _compare(got: Any, state: tuple[RequestStatus, int, int], when: str, hint: str) -> None:
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        raise NotYet("(status, known, computed)", got, when)
    if not isinstance(got[0], RequestStatus):
        kind = "the first of the three is a RequestStatus, not a word"
        hint = kind if isinstance(got[0], str) else hint
        raise NotYet(f"RequestStatus.{state[0].name}", repr(got[0]), when, hint)
    if tuple(got) != state:
        raise NotYet(_words(state), _words(tuple(got)), when, hint)


def _words(state: tuple[Any, ...]) -> str:
    return f"({state[0].name}, {state[1]}, {state[2]})"
