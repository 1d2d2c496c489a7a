"""Checks of notebook 05: who boards when, and who leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from paged_engine.lessons.exercises import NotYet, call, exercise, expect
from paged_engine.lessons.solutions import nb05 as lesson
from paged_engine.request import Request, RequestStatus

_MOST_STEPS = 200

Function = Callable[..., Any]


# ------------------------------------------------------------------ 05.1


@exercise(
    "05.1",
    "whoever runs gets at least a token a step, newcomers get the rest in order of arrival, "
    "and no step goes over seats or budget",
)
def check_schedule(schedule: Function) -> None:
    """States made by hand, then whole runs."""
    _nobody(schedule)
    _admission(schedule)
    _running_first(schedule)
    _fair(schedule)
    _random_runs(schedule)


def _nobody(schedule: Function) -> None:
    _step(schedule, 2, 8, [], [], {}, "nobody waits and nobody runs", "return an empty dict then")


def _admission(schedule: Function) -> None:
    when = "seats 2, budget 16, waiting A (3 tokens), B (5) and C (2)"
    seated = "first in line first (popleft), and only while len(self.running) < self.max_num_seqs"
    waiting = [_waiting("A", 3), _waiting("B", 5), _waiting("C", 2)]
    _step(schedule, 2, 16, [], waiting, {"A": 3, "B": 5}, when, seated)
    when = "seats 4, budget 8, waiting A (3 tokens), B (9) and C (2)"
    chunk = "who does not fit whole gets what is left of the budget; who gets nothing waits"
    waiting = [_waiting("A", 3), _waiting("B", 9), _waiting("C", 2)]
    _step(schedule, 4, 8, [], waiting, {"A": 3, "B": 5}, when, chunk)
    when = "seats 4, budget 8, waiting G (40 tokens)"
    _step(schedule, 4, 8, [], [_waiting("G", 40)], {"G": 8}, when, chunk)


def _running_first(schedule: Function) -> None:
    when = "seats 3, budget 8, running A and B (1 token left each), waiting C (9 tokens)"
    first = "serve self.running before anybody boards"
    running = [_running("A", 3, 2), _running("B", 5, 1)]
    wanted = {"A": 1, "B": 1, "C": 6}
    _step(schedule, 3, 8, running, [_waiting("C", 9)], wanted, when, first)
    when = "seats 3, budget 8, running A (1 token left) and C (3 left), waiting D (2 tokens)"
    running = [_running("A", 3, 2), _chunked("C", 9, 6)]
    wanted = {"A": 1, "C": 3, "D": 2}
    going_on = "what is left is num_tokens - num_computed_tokens"
    _step(schedule, 3, 8, running, [_waiting("D", 2)], wanted, when, going_on)
    when = "seats 2, budget 8, running A and B (1 token left each), waiting C (2 tokens)"
    running = [_running("A", 3, 2), _running("B", 5, 1)]
    full = "who runs already holds a seat"
    _step(schedule, 2, 8, running, [_waiting("C", 2)], {"A": 1, "B": 1}, when, full)


def _fair(schedule: Function) -> None:
    when = "seats 3, budget 8, running G (20 tokens left), then A and B (1 left each)"
    running = [_chunked("G", 28, 8), _running("A", 3, 2), _running("B", 5, 1)]
    behind = "leave one token of the budget for each running request behind this one"
    _step(schedule, 3, 8, running, [], {"G": 6, "A": 1, "B": 1}, when, behind)
    when = "budget 2, lowered while A, B and C run (1 token left each)"
    running = [_running("A", 3, 2), _running("B", 5, 1), _running("C", 4, 4)]
    spent = (
        "whoever is served gets at least 1 token, however many are behind: "
        "max(1, budget - behind); when the budget is spent, stop"
    )
    _step(schedule, 3, 2, running, [], {"A": 1, "B": 1}, when, spent)


def _random_runs(schedule: Function) -> None:
    """Whole runs, held step by step against the lesson's own."""
    for seed in range(30):
        draw = random.Random(seed)
        seats, budget = draw.randint(1, 5), draw.randint(1, 12)
        sizes = [(draw.randint(1, 20), draw.randint(1, 8)) for _ in range(draw.randint(1, 8))]
        own = _host(schedule, seats, budget)
        right = _host(lesson.schedule, seats, budget)
        for number, (prompt, most) in enumerate(sizes):
            for scheduler in (own, right):
                scheduler.add(Request(str(number), [1] * prompt, max_tokens=most))
        about = ", ".join(f"{prompt}+{most}" for prompt, most in sizes)
        for step in range(1, _MOST_STEPS):
            when = f"seats {seats}, budget {budget}, prompt+answer {about}, step {step}"
            got = _batch(own.schedule(), when)
            expect(got, _batch(right.schedule(), when), when)
            if not got:
                break
            for scheduler in (own, right):
                given = {r: got[r.request_id] for r in scheduler.running if r.request_id in got}
                scheduler.update(given, _sampled(given))


def _step(
    schedule: Function,
    seats: int,
    budget: int,
    running: list[Request],
    waiting: list[Request],
    wanted: dict[str, int],
    when: str,
    hint: str,
) -> None:
    """One step from a state made by hand."""
    scheduler = _host(schedule, seats, budget)
    scheduler.running.extend(running)
    scheduler.waiting.extend(waiting)
    computed = {r: r.num_computed_tokens for r in (*running, *waiting)}
    got = _batch(scheduler.schedule(), when)
    if got != wanted and sum(got.values()) > budget:
        told = f"{got}, which is {sum(got.values())} tokens"
        raise NotYet(f"{wanted}, at most {budget} tokens", told, when, hint)
    expect(got, wanted, when, hint)
    names = [r.request_id for r in (*running, *waiting) if r in running or r.request_id in wanted]
    in_line = [r.request_id for r in waiting if r.request_id not in wanted]
    both = "who gets tokens moves from self.waiting to the end of self.running, and nobody else"
    expect(_names(scheduler.running), names, f"{when}, self.running", both)
    expect(_names(scheduler.waiting), in_line, f"{when}, self.waiting", both)
    for request in scheduler.running:
        status = "who boards becomes RUNNING: request.set_status(RequestStatus.RUNNING)"
        about = f"{when}, status of {request.request_id}"
        if not isinstance(request.status, RequestStatus):
            raise NotYet("RequestStatus.RUNNING", repr(request.status), about, status)
        expect(request.status.name, "RUNNING", about, status)
    for request in scheduler.waiting:
        expect(request.status.name, "WAITING", f"{when}, status of {request.request_id}")
    for request, before in computed.items():
        about = f"{when}, num_computed_tokens of {request.request_id}"
        expect(request.num_computed_tokens, before, about, "nothing is computed yet: see update")


# ------------------------------------------------------------------ 05.2


@exercise(
    "05.2",
    "what was computed is counted, tokens are appended once, and who is finished leaves, "
    "neighbours in the list included",
)
def check_update(update: Function) -> None:
    """What is counted, who leaves, and who left before."""
    a, b, c = _running("A", 3, 1), _running("B", 5, 1), _chunked("C", 9, 0)
    when = "A (prompt 3) and B (prompt 5) get a token, C a chunk of 6 of its 9"
    try:
        scheduler = _after(update, [a, b, c], {a: 1, b: 1, c: 6}, {"A": 7, "B": 8}, [], when)
    except KeyError as problem:
        if problem.args != ("C",):
            raise
        told = "sampled names only who has caught up: ask first, `if request.request_id in sampled`"
        raise NotYet("no token for C", "KeyError: 'C'", when, told) from problem
    counted = "num_computed_tokens grows by what was scheduled, for each request in `scheduled`"
    for request, computed in ((a, 4), (b, 6), (c, 6)):
        about = f"{when}, num_computed_tokens of {request.request_id}"
        expect(request.num_computed_tokens, computed, about, counted)
    appended = "append_token(sampled[request_id]) for each request that `sampled` names"
    for request, tokens in ((a, 5), (b, 7), (c, 9)):
        expect(request.num_tokens, tokens, f"{when}, num_tokens of {request.request_id}", appended)
    expect(a.token_ids[-1], 7, f"{when}, the last token of A", appended)
    expect(_names(scheduler.running), ["A", "B", "C"], f"{when}, self.running")
    zero = _running("A", 3, 1)
    when = "A gets the token 0"
    _after(update, [zero], {zero: 1}, {"A": 0}, [], when)
    falsy = "0 is a token like any other, but counts as false: ask whether the id is in `sampled`"
    expect(zero.num_tokens, 5, f"{when}, num_tokens of A", falsy)
    _leaving(update)
    _aborted(update)


def _leaving(update: Function) -> None:
    walk = "does a loop over self.running change self.running? Then it skips a neighbour"
    last = [_running(name, 3, 1, max_tokens=2) for name in "ABCD"]
    last.insert(2, _running("E", 3, 1, max_tokens=9))
    when = "A, B, E, C and D run, and all but E get their last token"
    sampled = {r.request_id: 5 for r in last}
    gone = ["A", "B", "C", "D"]
    scheduler = _after(update, last, dict.fromkeys(last, 1), sampled, gone, when)
    expect(_names(scheduler.running), ["E"], f"{when}, self.running", walk)
    quiet, busy = _running("A", 3, 1), _running("B", 3, 1, max_tokens=2)
    when = "A runs but was given nothing in this step, B gets its last token"
    stays = "who got nothing in this step still runs: go through `scheduled` to count, and keep "
    stays += "all of self.running that are not finished"
    try:
        scheduler = _after(update, [quiet, busy], {busy: 1}, {"B": 5}, ["B"], when)
    except KeyError as problem:
        if problem.args != (quiet,):
            raise
        raise NotYet("A left as it was", "KeyError for A", when, stays) from problem
    expect(_names(scheduler.running), ["A"], f"{when}, self.running", stays)
    expect(quiet.num_computed_tokens, 3, f"{when}, num_computed_tokens of A")


def _aborted(update: Function) -> None:
    gone, stays = _running("A", 3, 1), _running("B", 3, 1)
    gone.set_status(RequestStatus.FINISHED_ABORTED)
    when = "A was aborted while the step was computed, B gets a token"
    hint = "skip who is_finished before you do anything: a finished request takes no token"
    known = gone.num_tokens
    before = "return only who finished in this step: who was aborted had left before"
    try:
        _after(update, [stays], {gone: 1, stays: 1}, {"A": 5, "B": 6}, [], when, before)
    except Exception as problem:
        if isinstance(problem, NotYet):
            raise
        raise NotYet("A left as it was", f"{type(problem).__name__}", when, hint) from problem
    expect(gone.num_tokens, known, f"{when}, num_tokens of A", hint)
    expect(stays.num_tokens, 5, f"{when}, num_tokens of B", "skip A only, and go on with the rest")


def _after(
    update: Function,
    running: list[Request],
    scheduled: dict[Request, int],
    sampled: dict[str, int],
    wanted: list[str],
    when: str,
    hint: str = "",
) -> Any:
    """The scheduler after one update; who finished was returned."""
    scheduler = _host(lesson.schedule, 8, 64, update)
    scheduler.running = list(running)
    before = dict(scheduled), dict(sampled)
    got = scheduler.update(scheduled, sampled)
    if (scheduled, sampled) != before:
        raise NotYet("its arguments left as they were", "changed ones", when, "work on a copy")
    finished = "return the list of requests that finished in this step"
    if not isinstance(got, (list, tuple)) or any(not isinstance(r, Request) for r in got):
        raise NotYet(f"a list of requests ({', '.join(wanted) or 'empty'})", got, when, finished)
    missed = hint or f"{finished}; does a loop over a list that changes skip somebody?"
    expect(sorted(_names(got)), sorted(wanted), f"{when}, who is returned", missed)
    for request in got:
        assert request.is_finished
    return scheduler


# ------------------------------------------------------------------ 05.3


@exercise("05.3", "a free seat is given on at once, first come, first served")
def check_steps_continuous(steps_continuous: Function) -> None:
    """Lengths of all kinds, held against a run."""
    cases = [
        ([5], 1, 5, "one request takes as many steps as it has tokens"),
        ([3, 4], 1, 7, "with one seat they go one after the other"),
        ([3, 4], 2, 4, "with a seat for each, the longest decides"),
        ([3, 16, 5, 4, 12, 3, 7, 4], 4, 16, "who is next takes the seat that is free first"),
        ([2, 2, 9], 2, 11, "in the order in which they came, not the longest first"),
        ([4, 1, 1, 5], 2, 7, "who is next takes the seat that is free first"),
        ([3, 3], 4, 3, "a seat may stay empty"),
    ]
    for lengths, seats, wanted, hint in cases:
        when = f"lengths {lengths}, {seats} seats"
        expect(call(steps_continuous, lengths, seats, when=when), wanted, when, hint)
    for seed in range(20):
        draw = random.Random(seed)
        lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 12))]
        seats = draw.randint(1, 5)
        when = f"lengths {lengths}, {seats} seats"
        expect(steps_continuous(list(lengths), seats), _run(lengths, seats), when)


def _run(lengths: Sequence[int], seats: int) -> int:
    """The steps that the lesson's scheduler takes."""
    scheduler = _host(lesson.schedule, seats, 64)
    for number, length in enumerate(lengths):
        scheduler.add(Request(str(number), [1], max_tokens=length))
    steps = 0
    while scheduled := scheduler.schedule():
        scheduler.update(scheduled, _sampled(scheduled))
        steps += 1
    return steps


# ------------------------------------------------------------------ what they share


def _host(schedule: Function, seats: int, budget: int, update: Function = lesson.update) -> Any:
    """A scheduler with the methods under test."""
    methods = {"schedule": schedule, "update": update}
    return type("Scheduler", (lesson.Scheduler,), methods)(seats, budget)


def _waiting(name: str, prompt: int) -> Request:
    return Request(name, [1] * prompt)


def _running(name: str, prompt: int, output: int, max_tokens: int = 99) -> Request:
    """One that decodes: all but its last token is computed."""
    request = Request(name, [1] * prompt, max_tokens=max_tokens)
    request.set_status(RequestStatus.RUNNING)
    for _ in range(output):
        request.append_token(2)
    request.num_computed_tokens = prompt + output - 1
    return request


def _chunked(name: str, prompt: int, computed: int) -> Request:
    """One in the middle of its prompt."""
    request = Request(name, [1] * prompt)
    request.set_status(RequestStatus.RUNNING)
    request.num_computed_tokens = computed
    return request


def _sampled(scheduled: dict[Request, int]) -> dict[str, int]:
    """A token for everyone who has caught up."""
    return {
        r.request_id: 5
        for r, num_tokens in scheduled.items()
        if r.num_computed_tokens + num_tokens == r.num_tokens
    }


def _names(requests: Sequence[Request]) -> list[str]:
    return [request.request_id for request in requests]


def _batch(scheduled: Any, when: str) -> dict[str, int]:
    """What `schedule` returned, by name."""
    if not isinstance(scheduled, dict):
        kind = "None" if scheduled is None else f"a {type(scheduled).__name__}"
        raise NotYet("a dict, request to number of tokens", kind, when, "return the dict")
    for request, number in scheduled.items():
        if not isinstance(request, Request):
            told = f"a key {request!r}, a {type(request).__name__}"
            raise NotYet("requests as keys", told, when, "the keys are the requests, not their ids")
        if type(number) is not int or number < 1:
            told = f"{number!r} for {request.request_id}"
            raise NotYet("1 token or more each", told, when, "who gets none is left out")
    return {request.request_id: number for request, number in scheduled.items()}
