"""What the tests know of notebook 04."""

TIMING_CELLS: list[str] = []

_TABLE = """
from paged_engine.errors import IllegalTransitionError
from paged_engine.request import RequestStatus

S = RequestStatus
CUT_SHORT = {S.FINISHED_ABORTED, S.FINISHED_IGNORED, S.FINISHED_ERROR}
LEGAL = {
    S.WAITING: CUT_SHORT | {S.RUNNING},
    S.RUNNING: {s for s in S if s.is_finished} | {S.PREEMPTED, S.WAITING},
    S.PREEMPTED: CUT_SHORT | {S.RUNNING},
}
"""
_SET = """
def set_status(self, status):
    if status not in LEGAL.get(self.status, ()):
        why = f"{self.request_id} is {self.status.name} and cannot become {status.name}"
        raise IllegalTransitionError(why)
    self.status = status
"""
_TAKE = """
from paged_engine.errors import IllegalTransitionError
from paged_engine.request import RequestStatus

def append_token(self, token_id):
    if self.status is not RequestStatus.RUNNING:
        raise IllegalTransitionError(f"{self.request_id} takes no token")
    self.token_ids.append(token_id)
    if token_id in self.eos_token_ids:
        self.set_status(RequestStatus.FINISHED_STOPPED)
    elif self.num_output_tokens >= self.max_tokens:
        self.set_status(RequestStatus.FINISHED_LENGTH)
"""
_STATE = """
from paged_engine.request import RequestStatus

def state_of(events):
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
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    """The solution with changes, each of which must be one."""
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


_RULES = _TABLE + _SET

WRONG: dict[str, dict[str, str]] = {
    "04.1": {
        "whoever waits may be preempted": _but(
            _RULES, ("S.WAITING: CUT_SHORT", "S.WAITING: CUT_SHORT | {S.PREEMPTED}")
        ),
        "the way back of a failed step is forgotten": _but(
            _RULES, ("{S.PREEMPTED, S.WAITING}", "{S.PREEMPTED}")
        ),
        "a preempted request may end by length": _but(
            _RULES, ("S.PREEMPTED: CUT_SHORT", "S.PREEMPTED: CUT_SHORT | {S.FINISHED_LENGTH}")
        ),
        "a preempted request waits again as WAITING": _but(
            _RULES, ("S.PREEMPTED: CUT_SHORT | {S.RUNNING}", "S.PREEMPTED: CUT_SHORT | {S.WAITING}")
        ),
        "a waiting request cannot be aborted": _but(
            _RULES, ("S.WAITING: CUT_SHORT | {S.RUNNING}", "S.WAITING: {S.RUNNING}")
        ),
        "to stay is legal": _but(
            _RULES, ("    if status not", "    if status is not self.status and status not")
        ),
        "what is finished has no entry": _but(
            _RULES, ("LEGAL.get(self.status, ())", "LEGAL[self.status]")
        ),
        "a message that says nothing": _but(_RULES, ("(why)", '("not allowed")')),
        "another error": _but(_RULES, ("raise IllegalTransitionError", "raise ValueError")),
        "it looks and does not move": _but(_RULES, ("    self.status = status", "    return True")),
        "it moves first and then looks": _TABLE
        + """
def set_status(self, status):
    old, self.status = self.status, status
    if status not in LEGAL.get(old, ()):
        why = f"{self.request_id} is {old.name} and cannot become {status.name}"
        raise IllegalTransitionError(why)
""",
        "nothing is refused": "def set_status(self, status):\n    self.status = status\n",
    },
    "04.2": {
        "one token too many": _but(_TAKE, (">=", ">")),
        "the prompt counts": _but(_TAKE, ("self.num_output_tokens", "self.num_tokens")),
        "the eos token is dropped": _but(
            _TAKE,
            ("    self.token_ids.append(token_id)\n", ""),
            (
                "    elif self.num",
                "        return\n    self.token_ids.append(token_id)\n    if self.num",
            ),
        ),
        "a preempted request takes tokens": _but(
            _TAKE, ("self.status is not RequestStatus.RUNNING", "self.is_finished")
        ),
        "the limit is asked before the eos token": _but(
            _TAKE,
            ("if token_id in self.eos_token_ids", "if self.num_output_tokens >= self.max_tokens"),
            ("elif self.num_output_tokens >= self.max_tokens", "elif token_id in _EOS"),
            ("_EOS", "self.eos_token_ids"),
            ("FINISHED_STOPPED", "x"),
            ("FINISHED_LENGTH", "FINISHED_STOPPED"),
            ("RequestStatus.x", "RequestStatus.FINISHED_LENGTH"),
        ),
        "any eos token ends it, the prompt's too": _but(
            _TAKE, ("token_id in self.eos", "set(self.token_ids) & self.eos")
        ),
        "it is refused when it is in the list already": _but(
            _TAKE,
            ("    self.token_ids.append(token_id)\n", ""),
            ("    if self.status", "    self.token_ids.append(token_id)\n    if self.status"),
        ),
        "both ends are asked for": _but(_TAKE, ("    elif", "    if")),
        "the first token is never the last": _but(
            _TAKE,
            (
                "    if token_id in",
                "    if self.num_output_tokens == 1:\n        return\n    if token_id in",
            ),
        ),
        "it moves the progress, which is not its own": _but(
            _TAKE, ("    if token_id in", "    self.num_computed_tokens += 1\n    if token_id in")
        ),
        "it refuses in silence": _but(
            _TAKE, ('raise IllegalTransitionError(f"{self.request_id} takes no token")', "return")
        ),
    },
    "04.3": {
        "preemption leaves what was computed": _but(
            _STATE,
            ("status, computed = RequestStatus.PREEMPTED, 0", "status = RequestStatus.PREEMPTED"),
        ),
        "preemption takes the output": _but(
            _STATE,
            ("status, computed = RequestStatus.PREEMPTED, 0",
             "status, known, computed = RequestStatus.PREEMPTED, 4, 0"),
        ),
        "the new token counts as computed": _but(
            _STATE, ("known, computed = known + 1, known", "known = computed = known + 1")
        ),
        "a token computes one more": _but(
            _STATE, ("known + 1, known", "known + 1, computed + 1")
        ),
        "a token computes nothing": _but(
            _STATE, ("known, computed = known + 1, known", "known += 1")
        ),
        "the status is a word": _but(_STATE, ("RequestStatus(event.reason)", "event.reason")),
        "what has ended is forgotten": _but(
            _STATE,
            ("            case _:",
             '            case "done":\n                pass\n            case _:'),
            ("status = RequestStatus(event.reason)",
             "states.pop(name)\n                continue"),
        ),
        "every event has a request": _but(
            _STATE, ('getattr(event, "request_id", None)', "event.request_id")
        ),
        "events of nobody are kept": _but(_STATE, ("        continue", "        pass")),
        "the prefix cache is ignored": _but(_STATE, ("event.num_cached_tokens", "0")),
        "pieces of a prompt add up": _but(_STATE, ("d = event.num_co", "d += event.num_co")),
        "it returns in the loop": _but(_STATE, ("\n    return states", "\n        return states")),
    },
}  # fmt: skip
