"""When jobs are sent and from when they count, on a clock that goes forward only when told.

A forward pass takes `SECONDS` and nothing else takes any time, so every number is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig
from paged_engine import events as ev
from paged_engine.benchmark.load import (
    Answer,
    ClosedLoop,
    Load,
    OpenLoop,
    as_clients_saw,
    at_once,
    drive,
    poisson,
)
from paged_engine.benchmark.workloads import Job
from paged_engine.metrics import RequestMetrics, run_metrics
from tests.helpers.fakes import OracleModel, VirtualClock

SECONDS = 2.0


class SlowModel(OracleModel):
    """Every forward pass takes the same time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        self.clock.now += SECONDS
        return super().forward(batch, cache)


class Bench:
    """An engine on a virtual clock, which begins at 100."""

    def __init__(self, max_num_seqs: int = 8) -> None:
        self.clock = VirtualClock()
        self.clock.now = 100.0
        self.slept: list[float] = []
        self.model = SlowModel(self.clock)
        config = EngineConfig(block_size=4, num_blocks=64, max_num_seqs=max_num_seqs)
        self.engine = ContinuousEngine(self.model, config=config, clock=self.clock)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.now += seconds

    def drive(self, jobs: Sequence[Job], load: Load, **options: Any) -> list[Answer]:
        return drive(self.engine, jobs, load, sleep=self.sleep, **options)

    def metrics(self, answers: Sequence[Answer]) -> tuple[RequestMetrics, ...]:
        """As the clients saw it."""
        return run_metrics(as_clients_saw(self.engine.log, answers)).requests


def jobs(*num_output_tokens: int) -> list[Job]:
    """Prompts of three tokens, all different."""
    return [Job((i + 1, i + 2, i + 3), n) for i, n in enumerate(num_output_tokens)]


def test_all_at_once() -> None:
    bench = Bench()
    answers = bench.drive(jobs(1, 2, 3), at_once(3))
    assert [(a.due, a.submitted) for a in answers] == [(100, 100)] * 3
    assert [r.ttft for r in bench.metrics(answers)] == [2, 2, 2]
    assert [r.e2e for r in bench.metrics(answers)] == [2, 4, 6]
    assert bench.slept == []


def test_answers_are_those_of_the_jobs() -> None:
    """In their order, whichever ends first."""
    bench = Bench(max_num_seqs=2)
    work = jobs(5, 1, 3, 2)
    for load in (at_once(4), OpenLoop((0, 3, 3.5, 50)), ClosedLoop(3)):
        answers = bench.drive(work, load)
        expected = [
            tuple(bench.model.continuation(j.prompt_token_ids, j.num_output_tokens)) for j in work
        ]
        assert [a.token_ids for a in answers] == expected


def test_a_request_that_comes_during_a_step_joins_the_next_and_has_waited_since() -> None:
    """Steps end at 102, 104, ...; it comes at 100.5, is seen at 102, and has its token at 104."""
    bench = Bench()
    answers = bench.drive(jobs(4, 1), OpenLoop((0.0, 0.5)))
    assert [(a.due, a.submitted) for a in answers] == [(100, 100), (100.5, 102)]
    _, second = bench.metrics(answers)
    assert (second.queue_time, second.ttft) == (1.5, 3.5)
    _, seen_by_engine = run_metrics(bench.engine.log).requests
    assert (seen_by_engine.queue_time, seen_by_engine.ttft) == (0, 2)  # the wait would be omitted
    assert bench.model.num_forwards == 4  # nobody waited for the first to end


def test_an_idle_engine_sleeps_until_the_next_is_due() -> None:
    bench = Bench()
    answers = bench.drive(jobs(1, 1, 1), OpenLoop((1.0, 1.5, 10.0)))
    # 101 to 103 the first, 103 to 105 the second, 110 to 112 the third
    assert bench.slept == [1.0, 5.0]
    assert [r.ttft for r in bench.metrics(answers)] == [2.0, 3.5, 2.0]
    assert bench.clock.now == 112


def test_a_sleep_that_ends_early_is_taken_up_again() -> None:
    bench = Bench()
    short = bench.sleep
    bench.sleep = lambda seconds: short(min(seconds, 0.75))  # type: ignore[method-assign]
    answers = bench.drive(jobs(1), OpenLoop((1.5,)))
    assert bench.slept == [0.75, 0.75]
    assert answers[0].submitted == answers[0].due == 101.5


def test_a_closed_loop_sends_when_an_answer_has_come() -> None:
    """Two clients: one has 3 tokens (6 s) and then 1, the other 1 (2 s) and then 2."""
    bench = Bench()
    answers = bench.drive(jobs(3, 1, 2, 1), ClosedLoop(2))
    assert [a.due for a in answers] == [100, 100, 102, 106]
    assert [a.submitted for a in answers] == [100, 100, 102, 106]
    assert [r.ttft for r in bench.metrics(answers)] == [2, 2, 2, 2]
    assert bench.clock.now == 108


def test_more_clients_than_jobs_is_all_at_once() -> None:
    bench = Bench()
    assert [a.due for a in bench.drive(jobs(1, 1), ClosedLoop(9))] == [100, 100]


def test_a_closed_loop_hides_the_queue_that_an_open_loop_shows() -> None:
    """The engine serves one request in 2 s, and one comes every second: twice what it can do.

    In the open loop each finds one more in line than the one before.  In the closed loop, whose
    two clients ask for all that the engine can do as well, the wait stays the same for ever: they
    stop asking while they wait.
    """
    work = jobs(*[1] * 20)
    open_bench, closed_bench = Bench(max_num_seqs=1), Bench(max_num_seqs=1)
    open_answers = open_bench.drive(work, OpenLoop(tuple(float(i) for i in range(20))))
    closed_answers = closed_bench.drive(work, ClosedLoop(2))
    assert open_bench.clock.now == closed_bench.clock.now == 140  # the engine was never idle
    assert [r.ttft for r in open_bench.metrics(open_answers)] == [2.0 + i for i in range(20)]
    assert [r.ttft for r in closed_bench.metrics(closed_answers)] == [2.0] + [4.0] * 19


def test_the_order_of_the_log_and_its_other_times_stay() -> None:
    bench = Bench()
    answers = bench.drive(jobs(3, 2), OpenLoop((0.0, 0.5)))
    before, after = list(bench.engine.log), list(as_clients_saw(bench.engine.log, answers))
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    ((engines, clients),) = changed
    assert isinstance(engines, ev.Queued) and isinstance(clients, ev.Queued)
    assert (engines.time, clients.time) == (102, 100.5)
    assert (engines.request_id, clients.request_id) == (answers[1].request_id,) * 2


def test_progress_is_told() -> None:
    told: list[int] = []
    Bench().drive(jobs(2, 1, 1), at_once(3), progress=told.append)
    assert told == [1, 2, 3]


def test_poisson_arrivals() -> None:
    """Gaps of an exponential: its mean is 1 / rate, and so is its standard deviation."""
    arrivals = poisson(20_000, 4.0, seed=0).arrivals
    gaps = [later - earlier for earlier, later in pairwise((0.0, *arrivals))]
    assert min(gaps) > 0
    assert fmean(gaps) == pytest.approx(0.25, rel=0.03)
    assert pstdev(gaps) == pytest.approx(0.25, rel=0.03)


def test_arrivals_are_the_same_from_the_same_seed() -> None:
    assert poisson(9, 1.0, seed=3) == poisson(9, 1.0, seed=3)
    assert poisson(9, 1.0, seed=3) != poisson(9, 1.0, seed=4)
    slow, fast = poisson(9, 1.0, seed=3).arrivals, poisson(9, 2.0, seed=3).arrivals
    assert slow == pytest.approx([2 * arrival for arrival in fast])
