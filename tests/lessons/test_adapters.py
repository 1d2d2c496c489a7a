"""A reader's request and a reader's scheduler in the real engine."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any, ClassVar

import pytest

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.lessons import own_request, without_blocks
from paged_engine.lessons.adapters import WithoutBlocks
from paged_engine.request import RequestStatus
from tests.helpers.fakes import OracleModel

PROMPTS = [[7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33, 34, 35, 36, 37, 38]]
PARAMS = [SamplingParams(max_tokens=n) for n in (6, 11, 3)]


class Small:
    """The scheduler of notebook 05, in short."""

    def __init__(self, max_num_seqs: int = 2, budget: int = 4) -> None:
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        self.waiting: deque[Any] = deque()
        self.running: list[Any] = []

    def add(self, request: Any) -> None:
        self.waiting.append(request)

    def abort(self, request_id: str) -> None:
        self.running = [r for r in self.running if r.request_id != request_id]
        self.waiting = deque(r for r in self.waiting if r.request_id != request_id)

    def schedule(self) -> dict[Any, int]:
        while self.waiting and len(self.running) < self.max_num_seqs:
            self.running.append(self.waiting.popleft())
        left, scheduled = self.budget, {}
        for request in self.running:
            scheduled[request] = min(request.num_tokens - request.num_computed_tokens, max(1, left))
            left -= scheduled[request]
        return scheduled

    def update(self, scheduled: dict[Any, int], sampled: dict[str, int]) -> list[Any]:
        for request, count in scheduled.items():
            request.num_computed_tokens += count
            if request.request_id in sampled:
                request.append_token(sampled[request.request_id])
        finished = [r for r in self.running if r.is_finished]
        self.running = [r for r in self.running if not r.is_finished]
        return finished


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOPPED = auto()
    FINISHED_LENGTH = auto()
    FINISHED_ABORTED = auto()
    FINISHED_IGNORED = auto()
    FINISHED_ERROR = auto()


class Mine:
    """The request of notebook 04, in short."""

    made: ClassVar[list[Mine]] = []

    def __init__(
        self, request_id: str, prompt: list[int], max_tokens: int, eos: frozenset[int]
    ) -> None:
        self.request_id, self.max_tokens, self.eos = request_id, max_tokens, eos
        self.token_ids, self.num_prompt_tokens = list(prompt), len(prompt)
        self.num_computed_tokens = 0
        self.status = Status.WAITING
        Mine.made.append(self)

    def set_status(self, status: Status) -> None:
        self.status = status

    def append_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if token_id in self.eos:
            self.set_status(Status.FINISHED_STOPPED)
        elif len(self.token_ids) - self.num_prompt_tokens >= self.max_tokens:
            self.set_status(Status.FINISHED_LENGTH)


def engine(**options: Any) -> ContinuousEngine:
    parts = {k: options.pop(k) for k in ("scheduler", "request") if k in options}
    limits = {"block_size": 4, "num_blocks": 32, **options}
    return ContinuousEngine(OracleModel(eos=(3,)), config=EngineConfig(**limits), **parts)


def test_a_scheduler_without_blocks_gives_the_same_tokens() -> None:
    wanted = [o.token_ids for o in engine().generate(PROMPTS, PARAMS)]
    own = engine(scheduler=without_blocks(Small()))
    assert [o.token_ids for o in own.generate(PROMPTS, PARAMS)] == wanted
    assert own.pool.num_free == 32
    allocated: list[Any] = own.log.of_kind("allocated")
    assert len(allocated) == 3  # all that each can need, at once
    assert [len(e.block_ids) for e in allocated] == [-(-(5 + 6) // 4), -(-(2 + 11) // 4), 3]


def test_who_finds_no_room_waits_at_the_door_and_nobody_passes() -> None:
    own = engine(scheduler=without_blocks(Small(4, 16)), num_blocks=7)
    names = [own.add_request(p, s) for p, s in zip(PROMPTS, PARAMS, strict=True)]
    own.step()  # 3 + 4 blocks
    assert isinstance(own.scheduler, WithoutBlocks) and own.scheduler.num_at_the_door == 1
    own.abort(names[0])
    while own.has_unfinished:
        own.step()
    assert own.pool.num_free == 7


def test_an_abort_at_the_door_and_in_the_middle() -> None:
    own = engine(scheduler=without_blocks(Small(4, 16)), num_blocks=7)
    names = [own.add_request(p, s) for p, s in zip(PROMPTS, PARAMS, strict=True)]
    own.step()
    own.abort(names[2])
    own.abort(names[1])
    while own.has_unfinished:
        own.step()
    aborted: list[Any] = own.log.of_kind("aborted")
    assert {e.request_id for e in aborted} == {names[1], names[2]} and own.pool.num_free == 7


class Forgetful(Small):
    def update(self, scheduled: dict[Any, int], sampled: dict[str, int]) -> list[Any]:
        for request, count in scheduled.items():
            request.num_computed_tokens += count
        return []


class Clinging(Small):
    def update(self, scheduled: dict[Any, int], sampled: dict[str, int]) -> list[Any]:
        running = list(self.running)
        super().update(scheduled, sampled)
        self.running = running
        return []


class Greedy(Small):
    def schedule(self) -> dict[Any, int]:
        return {request: count + 1 for request, count in super().schedule().items()}


class Nothing(Small):
    def schedule(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Forgetful, "does update call append_token"),
        (Clinging, "finished or was never added"),
        (Greedy, "tokens; expected 1 to"),
        (Nothing, "expected a dict"),
    ],
)
def test_a_scheduler_that_errs_is_told_what_it_did(broken: type[Small], words: str) -> None:
    own = engine(scheduler=without_blocks(broken(4, 64)))
    with pytest.raises(InvariantError, match=words):
        own.generate(PROMPTS, PARAMS)


def test_what_is_no_scheduler_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(InvalidConfigError, match="has no add and no abort and no schedule"):
        without_blocks(object())


def test_a_readers_request_decides_in_the_real_engine() -> None:
    wanted = engine().generate(PROMPTS, PARAMS)
    Mine.made.clear()
    own = engine(request=own_request(Mine))
    got = own.generate(PROMPTS, PARAMS)
    assert [o.token_ids for o in got] == [o.token_ids for o in wanted]
    assert [o.finish_reason for o in got] == [o.finish_reason for o in wanted]
    assert len(Mine.made) == 3
    assert [m.token_ids[m.num_prompt_tokens :] for m in Mine.made] == [
        list(o.token_ids) for o in got
    ]
    assert all(m.status.name.startswith("FINISHED") for m in Mine.made)


def test_a_readers_request_is_preempted_and_aborted_like_any_other() -> None:
    wanted = [o.token_ids for o in engine().generate(PROMPTS, PARAMS)]
    Mine.made.clear()
    tight = engine(request=own_request(Mine), num_blocks=4)
    assert [o.token_ids for o in tight.generate(PROMPTS, PARAMS)] == wanted
    assert tight.log.of_kind("preempted")
    name = tight.add_request(PROMPTS[0], PARAMS[0])
    tight.step()
    tight.abort(name)
    assert Mine.made[-1].status is Status.FINISHED_ABORTED
    assert RequestStatus.FINISHED_ABORTED.is_finished


def test_a_request_that_ends_a_token_early_is_seen_in_the_output() -> None:
    class Hasty(Mine):
        def append_token(self, token_id: int) -> None:
            super().append_token(token_id)
            if len(self.token_ids) - self.num_prompt_tokens == self.max_tokens - 1:
                self.set_status(Status.FINISHED_LENGTH)

    hasty = engine(request=own_request(Hasty)).generate(PROMPTS, PARAMS)
    wanted = engine().generate(PROMPTS, PARAMS)
    assert [len(o.token_ids) for o in hasty] == [len(o.token_ids) - 1 for o in wanted]


def test_a_new_limit_reaches_the_readers_scheduler() -> None:
    """Not only a copy of it, which the log would tell of and nobody keep to."""

    class Limited(Small):
        max_num_batched_tokens = 64

    mine = Limited(3, 64)
    own = engine(scheduler=without_blocks(mine))
    own.set_limits(max_num_seqs=1, max_num_batched_tokens=8)
    assert (mine.max_num_seqs, mine.max_num_batched_tokens) == (1, 8)
    assert own.snapshot().max_num_seqs == 1 and own.snapshot().max_num_batched_tokens == 8
    own.generate(PROMPTS, PARAMS)
    finished = [e.request_id for e in own.log.of_kind("finished")]  # type: ignore[attr-defined]
    assert finished == ["request-0", "request-1", "request-2"]  # one after the other
