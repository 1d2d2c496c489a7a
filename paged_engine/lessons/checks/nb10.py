"""Checks of notebook 10: what each user waited for, and how a load is sent."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from paged_engine import events as ev
from paged_engine.batch import Batch
from paged_engine.benchmark.workloads import Job
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.lessons.exercises import NotYet, call, exercise, expect
from paged_engine.lessons.solutions import nb10 as lesson

Function = Callable[..., Any]


# ------------------------------------------------------------------ 10.1


@exercise(
    "10.1",
    "TTFT counts from when a request was due, TPOT is the mean of its ITLs, and who got no token "
    "or a single one is in the answer too",
)
def check_latencies(latencies: Function) -> None:
    """Logs made by hand, then random ones against the lesson's own."""
    log = _log({"A": (5, [19, 30, 71])})
    when = "A queued at 5, its tokens at 19, 30 and 71"
    first = "TTFT is the time of the first token less that of `queued`"
    means = "TPOT is the mean over the tokens after the first: (71 - 19) / 2 here"
    _served(latencies, log, {}, {"A": (14, 26, [11, 41])}, when, f"{first}; {means}")
    when = "A queued at 25 and due at 20, its tokens at 66 and 78"
    _served(
        latencies, _log({"A": (25, [66, 78])}), {"A": 20}, {"A": (46, 12, [12])}, when,
        "if `due` names the request, its time is the beginning, not that of `queued`",
    )  # fmt: skip
    when = "A queued at 7 and due at 0, its tokens at 9 and 12"
    zero = "0 is a time like any other, but counts as false: ask whether the name is in `due`"
    _served(latencies, _log({"A": (7, [9, 12])}), {"A": 0}, {"A": (9, 3, [3])}, when, zero)
    when = "A has one token, B has none and was aborted, C waits"
    log = _log({"A": (1, [4]), "B": (2, []), "C": (3, [])})
    log.append(ev.Aborted(8, 1, "B"))
    wanted = {"A": (3, None, []), "B": (None, None, []), "C": (None, None, [])}
    missing = "None where there is no such time: no first token, or no second one"
    _served(latencies, log, {}, wanted, when, missing)
    when = "A and B get their tokens in turns, and A is admitted late"
    log = _log({"A": (0, [40, 50, 70]), "B": (10, [40, 60, 65])}, admitted=30)
    turns = "keep the times of each request apart, and count from `queued`, not from `admitted`"
    wanted = {"A": (40, 15, [10, 20]), "B": (30, 12.5, [20, 5])}
    _served(latencies, log, {}, wanted, when, turns)
    for seed in range(20):
        draw = random.Random(seed)
        lives, due = {}, {}
        for number in range(draw.randint(1, 6)):
            came = draw.randint(0, 50)
            times = sorted(draw.sample(range(60, 400), draw.randint(0, 9)))
            lives[f"R{number}"] = (came, times)
            if draw.random() < 0.5:
                due[f"R{number}"] = came - draw.randint(0, 9)
        log = _log(lives)
        _served(latencies, log, due, lesson.latencies(log, due), f"random log {seed}")


def _served(
    latencies: Function,
    log: Sequence[ev.Event],
    due: dict[str, int],
    wanted: dict[str, Any],
    when: str,
    hint: str = "",
) -> None:
    got = call(latencies, log, due, when=when)
    expect(got, dict(got) if isinstance(got, dict) else wanted, when, "return a dict, by name")
    names = "one entry for each request that was queued, by its request_id"
    expect(sorted(got), sorted(wanted), f"{when}, the names", names)
    for name, (ttft, tpot, itls) in wanted.items():
        three = f"for each request a tuple of three, as {wanted[name]} for {name} here"
        if not isinstance(got[name], tuple) or len(got[name]) != 3:
            raise NotYet(wanted[name], got[name], f"{when}, {name}", three)
        _near(got[name][0], ttft, f"{when}, TTFT of {name}", hint)
        _near(got[name][1], tpot, f"{when}, TPOT of {name}", hint)
        between = "ITLs lie between two tokens in a row of the same request: pairwise(times)"
        about = f"{when}, ITLs of {name}"
        if not isinstance(got[name][2], list) or len(got[name][2]) != len(itls):
            raise NotYet(itls, got[name][2], about, between)
        for one, right in zip(got[name][2], itls, strict=True):
            _near(one, right, about, hint or between)


def _log(lives: dict[str, tuple[int, list[int]]], admitted: int | None = None) -> list[ev.Event]:
    """Requests that are queued, admitted, and get tokens at these times, in the order of time."""
    events: list[ev.Event] = []
    for name, (came, times) in lives.items():
        events.append(ev.Queued(came, 0, name, (1, 2), 16, 0, 0))
        if times:
            events.append(ev.Admitted(came if admitted is None else admitted, 1, name))
        events += [ev.Token(at, 1, name, 7) for at in times]
        if times:
            events.append(ev.Finished(times[-1], 1, name, "length"))
    events.sort(key=lambda event: event.time)
    return events


# ------------------------------------------------------------------ 10.2


@exercise("10.2", "in any order, between two values, and at both ends")
def check_percentile(percentile: Function) -> None:
    """Small lists, then random ones."""
    place = "the place is (len(values) - 1) * percent / 100, counted from 0 in the sorted values"
    between = "a place between two values is so far on the way from one to the other"
    cases: list[tuple[list[float], float, float, str]] = [
        ([7], 99, 7, "of one value every percentile is that value"),
        ([10, 20, 30], 50, 20, place),
        ([30, 10, 20], 50, 20, "sort them first, and leave the list as it is"),
        ([10, 20, 30], 100, 30, "at 100 percent the place is the last: is there one above it?"),
        ([10, 20, 30], 0, 10, place),
        ([10, 20], 50, 15, between),
        ([10, 20], 75, 17.5, between),
        ([10, 20, 40, 80], 90, 68, between),
        (list(range(1, 102)), 99, 100, place),
    ]
    for values, percent, wanted, hint in cases:
        when = f"{percent} percent of {values if len(values) < 9 else '1 to 101'}"
        _near(call(percentile, values, percent, when=when), wanted, when, hint)
    for seed in range(20):
        draw = random.Random(seed)
        values = [draw.uniform(0, 100) for _ in range(draw.randint(1, 40))]
        percent = draw.choice([0, 1, 25, 50, 90, 95, 99, 99.9, 100])
        when = f"{percent} percent of {len(values)} values"
        _near(call(percentile, values, percent), lesson.percentile(values, percent), when)


# ------------------------------------------------------------------ 10.3


@exercise("10.3", "the gaps are exponential with mean 1 / rate, and a seed gives the same again")
def check_poisson(poisson: Function) -> None:
    """Many arrivals, looked at as a whole."""
    when = "5 requests, 2 a second, seed 0"
    state = random.getstate()
    got = call(poisson, 5, 2, 0, when=when)
    if random.getstate() != state:
        own = "random.Random(seed) is a generator of your own"
        raise NotYet("random's own state left as it was", "another", when, own)
    expect(got, list(got) if isinstance(got, (list, tuple)) else [], when, "return a list")
    expect(len(got), 5, f"{when}, how many", "one time for each request")
    _near_list(poisson(5, 2, 0), got, f"{when}, once more", "the same seed, the same arrivals")
    if list(poisson(5, 2, 1)) == list(got):
        raise NotYet("other times for another seed", "the same", when, "random.Random(seed)")
    for rate in (0.5, 20):
        when = f"20000 requests, {rate} a second, seed 3"
        times = [0.0, *poisson(20_000, rate, 3)]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        if min(gaps) < 0:
            added = "each comes a gap after the one before: itertools.accumulate"
            raise NotYet("times that ascend", f"{times[1:4]} ...", when, added)
        about = f"{when}, mean gap"
        _near(sum(gaps) / len(gaps), 1 / rate, about, "the mean of the gaps is 1 / rate", 0.05)
        longer = sum(gap > 1 / rate for gap in gaps) / len(gaps)
        exponential = "random.Random(seed).expovariate(rate) draws such a gap"
        about = f"{when}, share of gaps longer than 1 / rate"
        _near(longer, math.exp(-1), about, exponential, 0.05)
    for seed in range(3):
        when = f"5 requests, 2 a second, seed {seed}"
        drawn = "make one random.Random(seed), and draw each gap with expovariate(rate)"
        wanted = lesson.poisson(5, 2, seed)
        for one, right in zip(poisson(5, 2, seed), wanted, strict=True):
            _near(one, right, f"{when} (all: {[round(at, 3) for at in wanted]})", drawn)


# ------------------------------------------------------------------ 10.4


class _Clock:
    """Goes on when told; with `tick`, a little with every look as well."""

    def __init__(self, now: float, tick: float = 0) -> None:
        self.now, self.tick = now, tick
        self.waits: list[float] = []

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def wait(self, time: float) -> None:
        self.waits.append(time)
        if time < 0:
            late = "time goes on between two looks at the clock: max(0, ...)"
            raise NotYet("a wait of at least 0", time, "a real clock", late)
        self.now += time


class _Priced:
    """A model that answers at once, and lets the clock pass."""

    kv_shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=1)
    dtype, device = torch.float32, torch.device("cpu")
    vocab_size, max_model_len = 64, 1024
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        self.clock.now += 10 + batch.num_tokens
        return torch.eye(64)[[7] * batch.num_seqs]


def _engine(clock: _Clock, seats: int) -> ContinuousEngine:
    config = EngineConfig(
        num_blocks=64, max_num_seqs=seats, max_num_batched_tokens=64, enable_prefix_caching=False
    )
    return ContinuousEngine(_Priced(clock), config=config, clock=clock)


@exercise(
    "10.4",
    "each is handed over at the first chance after it is due, whoever is still being served, and "
    "counts from when it was due",
)
def check_open_loop(open_loop: Function) -> None:
    """Whole runs on a clock of our own."""
    cases: list[tuple[str, list[float], list[int], int, str]] = [
        ("one job, due at 0", [0], [3], 2, "hand it over, then step until nothing is unfinished"),
        ("one job, due at 40", [40], [3], 2, "nothing to serve and nothing due: wait for the rest"),
        ("two jobs, due at 0 and 5", [0, 5], [6, 2], 2,
         "hand over all that is due before each step, however busy the engine is"),
        ("three jobs, due at 0, 0 and 90, one seat", [0, 0, 90], [4, 4, 2], 1,
         "the engine has the queue: hand over who is due though no seat is free"),
        ("three jobs, due at 0, 500 and 501", [0, 500, 501], [2, 9, 2], 2,
         "wait until the next is due, and no longer"),
    ]  # fmt: skip
    for seed in range(8):
        draw = random.Random(seed)
        times = sorted(draw.randint(0, 600) for _ in range(12))
        lengths = [draw.randint(1, 9) for _ in times]
        cases.append((f"12 jobs, random times {seed}", [*times], lengths, 3, ""))
    for when, arrivals, lengths, seats, hint in cases:
        _runs_alike(open_loop, when, arrivals, lengths, seats, hint)
    for gap in range(60, 90):  # in some of them a job is due between two looks
        clock = _Clock(50, tick=3)
        plan = [gap * number for number in range(4)]
        due = open_loop(_engine(clock, 2), _jobs([2, 2, 2, 2]), plan, clock, clock.wait)
        expect(len(due), 4, "a clock that goes on by itself, how many are in the answer")


def _runs_alike(
    open_loop: Function,
    when: str,
    arrivals: Sequence[float],
    lengths: Sequence[int],
    seats: int,
    hint: str,
) -> None:
    """The same requests at the same moments as in the lesson's own run."""
    runs = []
    for function in (lesson.open_loop, open_loop):
        clock = _Clock(100)
        engine = _engine(clock, seats)
        work, times = _jobs(lengths), list(arrivals)
        due = function(engine, work, times, clock, clock.wait)
        if work != _jobs(lengths) or times != list(arrivals):
            raise NotYet("jobs and arrivals left as they were", "changed ones", when)
        if engine.has_unfinished:
            end = "go on until nobody is due any more and engine.has_unfinished is False"
            raise NotYet("all served", "some unfinished", when, end)
        runs.append((engine, due))
    (right, wanted), (own, got) = runs
    expect(got, dict(got) if isinstance(got, dict) else wanted, when, "return a dict, by name")
    told = [(e.time, len(e.prompt_token_ids)) for e in right.log.of_kind("queued")]
    handed = [(e.time, len(e.prompt_token_ids)) for e in own.log.of_kind("queued")]
    expect(len(handed), len(told), f"{when}, how many were handed over", hint)
    clock_too = "the clock was at 100 when it began"
    expect(
        [at for at, _ in handed], [at for at, _ in told], f"{when} ({clock_too}), handed over at",
        hint or "hand over all that is due before each step; wait only if nothing is unfinished",
    )  # fmt: skip
    expect([n for _, n in handed], [n for _, n in told], f"{when}, whose prompts", "in order")
    most = [e.max_tokens for e in own.log.of_kind("queued")]
    expect(most, list(lengths), f"{when}, max_tokens", "hand job.params over as well")
    names = [e.request_id for e in own.log.of_kind("queued")]
    by_name = "the keys are the names that engine.add_request returns"
    expect(sorted(got), sorted(names), f"{when}, the names", by_name)
    from_due = "when it was due is start + arrival, whenever it was handed over"
    for name, right_due in zip(names, wanted.values(), strict=True):
        _near(got[name], right_due, f"{when} ({clock_too}), due of {name}", from_due)


def _jobs(lengths: Sequence[int]) -> list[Job]:
    return [Job((1,) * (3 + number), length) for number, length in enumerate(lengths)]


# ------------------------------------------------------------------ what they share


def _near(got: Any, wanted: Any, when: str, hint: str = "", within: float = 1e-9) -> None:
    """The same number but for rounding, or both None."""
    is_number = isinstance(got, (int, float)) and not isinstance(got, bool)
    if wanted is None or not is_number:
        return expect(got, wanted, when, hint)
    if not math.isclose(got, wanted, rel_tol=within, abs_tol=1e-9):
        raise NotYet(wanted, got, when, hint)


def _near_list(got: Any, wanted: Any, when: str, hint: str) -> None:
    expect(list(got), list(wanted), when, hint)
