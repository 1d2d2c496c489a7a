"""Numbers that were worked out by hand, from logs whose times are known."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine import events as ev
from paged_engine.metrics import RunMetrics, percentile, request_metrics, run_metrics
from tests.helpers.fakes import OracleModel, VirtualClock


class SlowModel(OracleModel):
    """Every forward pass takes two seconds of a clock that goes forward only so."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        self.clock.now += 2.0
        return super().forward(batch, cache)


def slow_engine(**options: Any) -> tuple[ContinuousEngine, SlowModel, VirtualClock]:
    clock = VirtualClock()
    clock.now = 10.0
    model = SlowModel(clock)
    config = EngineConfig(**{"block_size": 4, "num_blocks": 8, **options})
    return ContinuousEngine(model, config=config, clock=clock), model, clock


def tokens(number: int) -> SamplingParams:
    return SamplingParams(max_tokens=number)


def finish(engine: ContinuousEngine) -> None:
    while engine.has_unfinished:
        engine.step()


def two_requests() -> ContinuousEngine:
    """At 10 s one of 5 + 3 tokens comes, at 12 s one of 2 + 2; steps end at 12, 14 and 16 s."""
    engine, _, _ = slow_engine()
    engine.add_request([1, 2, 3, 4, 5], tokens(3), request_id="a")
    engine.step()
    engine.add_request([6, 7], tokens(2), request_id="b")
    finish(engine)
    return engine


def test_latencies_of_requests() -> None:
    a, b = request_metrics(two_requests().log)
    assert (a.request_id, a.finish_reason, a.queue_time) == ("a", "length", 0.0)
    assert (a.ttft, a.itl, a.tpot, a.e2e) == (2.0, (2.0, 2.0), 2.0, 6.0)
    assert (a.num_prompt_tokens, a.num_output_tokens) == (5, 3)
    assert (a.num_cached_tokens, a.num_preemptions) == (0, 0)
    assert (b.ttft, b.itl, b.tpot, b.e2e) == (2.0, (2.0,), 2.0, 4.0)


def test_numbers_of_a_run() -> None:
    run = run_metrics(two_requests().log)
    assert run.duration == 6.0
    assert run.num_output_tokens == 5
    assert run.output_throughput == 5 / 6
    assert run.total_throughput == 12 / 6
    assert (run.num_steps, run.num_prefill_tokens, run.num_decode_tokens) == (3, 7, 3)
    assert run.batch_sizes == (1, 2, 2)
    assert run.block_use == (2 / 8, 3 / 8, 3 / 8)
    assert run.fragmentation == (3 / 8, 4 / 12, 2 / 12)
    assert (run.prefix_hit_rate, run.waste, run.num_preemptions) == (0.0, 0.0, 0)


def test_numbers_of_steps() -> None:
    """In the second step, b's prompt is computed beside a's token."""
    steps = run_metrics(two_requests().log).steps
    assert [(step.began, step.ended) for step in steps] == [(10, 12), (12, 14), (14, 16)]
    assert [step.num_prefills for step in steps] == [1, 1, 0]
    assert [step.num_prefill_tokens for step in steps] == [5, 2, 0]
    assert [step.num_decode_tokens for step in steps] == [0, 1, 2]
    assert [step.num_new_tokens for step in steps] == [1, 2, 2]


def test_goodput_counts_requests_that_met_both_targets() -> None:
    run = run_metrics(two_requests().log)
    assert run.goodput(ttft=2.0, tpot=2.0) == 2 / 6
    assert run.goodput(ttft=1.9, tpot=2.0) == 0.0
    assert run.goodput(ttft=2.0, tpot=1.9) == 0.0


def test_one_token_has_no_tpot_to_miss_and_an_abort_never_counts() -> None:
    engine, _, _ = slow_engine()
    engine.add_request([1], tokens(1), request_id="one token")
    engine.add_request([2], tokens(9), request_id="aborted")
    engine.step()
    engine.abort("aborted")
    finish(engine)
    one, aborted = request_metrics(engine.log)
    assert (one.tpot, one.itl) == (None, ())
    assert (aborted.finish_reason, aborted.e2e, aborted.num_output_tokens) == ("abort", 2.0, 1)
    assert run_metrics(engine.log).goodput(ttft=100, tpot=0) == 1 / 2


def test_waiting_for_a_seat_is_queue_time_and_part_of_ttft() -> None:
    engine, _, _ = slow_engine(max_num_seqs=1)
    engine.add_request([1], tokens(2), request_id="first")
    engine.add_request([2], tokens(1), request_id="second")
    finish(engine)
    _, second = request_metrics(engine.log)
    assert (second.queue_time, second.ttft, second.e2e) == (4.0, 6.0, 6.0)


def test_prefix_hits_count_at_admission() -> None:
    engine, _, _ = slow_engine()
    for name in ("cold", "warm"):
        engine.add_request([1, 2, 3, 4, 5, 6, 7, 8, 9], tokens(2), request_id=name)
        finish(engine)
    cold, warm = request_metrics(engine.log)
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 8)
    run = run_metrics(engine.log)
    assert run.prefix_hit_rate == 8 / 18
    assert (run.num_prefill_tokens, run.num_decode_tokens) == (9 + 1, 2)
    assert run.waste == 0.0


def test_shared_blocks_are_counted_once() -> None:
    engine, _, _ = slow_engine()
    engine.add_request([1, 2, 3, 4, 5, 6, 7, 8, 9], tokens(6), request_id="a")
    engine.step()
    engine.add_request([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], tokens(2), request_id="b")
    engine.step()
    run = run_metrics(engine.log)
    # two shared and full, and each has a third with 2 tokens
    assert run.block_use == (3 / 8, 4 / 8)
    assert run.fragmentation == (3 / 12, 4 / 16)


def test_blocks_are_measured_against_those_that_are_usable() -> None:
    engine, _, _ = slow_engine()
    engine.resize_pool(4)
    engine.add_request([1, 2, 3, 4, 5], tokens(1))
    finish(engine)
    assert run_metrics(engine.log).block_use == (2 / 4,)


def test_a_failed_step_takes_time_and_wastes_its_tokens() -> None:
    engine, model, _ = slow_engine()
    model.fail_at = {2}
    engine.add_request([1, 2, 3], tokens(2))
    engine.step()
    with pytest.raises(RuntimeError):
        engine.step()
    finish(engine)
    run = run_metrics(engine.log)
    assert run.num_steps == 3
    assert (run.num_prefill_tokens, run.num_decode_tokens) == (3, 1)
    assert run.waste == 1 / 5
    assert run.batch_sizes == (1, 1)
    assert run.requests[0].itl == (4.0,)


PREEMPTED: list[ev.Event] = [
    ev.EngineStarted(0.0, 0, 4, 4, 8, 64),
    ev.Queued(1.0, 0, "a", (1, 2, 3, 4), 4, 0, 0),
    ev.StepBegan(2.0, 1, 64),
    ev.Admitted(2.0, 1, "a", 0),
    ev.Allocated(2.0, 1, "a", (0,)),
    ev.Scheduled(2.0, 1, "a", 0, 4),
    ev.Token(3.0, 1, "a", 9),
    ev.StepEnded(3.0, 1, 4),
    ev.StepBegan(4.0, 2, 64),
    ev.Allocated(4.0, 2, "a", (1,)),
    ev.Scheduled(4.0, 2, "a", 4, 1),
    ev.Token(5.5, 2, "a", 8),
    ev.StepEnded(5.5, 2, 1),
    ev.StepBegan(6.0, 3, 64),
    ev.Freed(6.0, 3, "a", (0, 1)),
    ev.Preempted(6.0, 3, "a"),
    ev.StepEnded(6.5, 3, 0),
    ev.StepBegan(7.0, 4, 64),
    ev.Admitted(7.0, 4, "a", 0),
    ev.Allocated(7.0, 4, "a", (2, 3)),
    ev.Scheduled(7.0, 4, "a", 0, 6),
    ev.Token(9.0, 4, "a", 7),
    ev.Freed(9.0, 4, "a", (2, 3)),
    ev.Finished(9.0, 4, "a", "stop"),
    ev.StepEnded(9.0, 4, 6),
]


def test_preemption_is_waste_and_its_second_admission_is_no_queue_time() -> None:
    run = run_metrics(PREEMPTED)
    (a,) = run.requests
    assert (a.num_preemptions, run.num_preemptions) == (1, 1)
    assert (a.queue_time, a.ttft, a.e2e) == (1.0, 2.0, 8.0)
    assert a.itl == (2.5, 3.5)
    assert a.tpot == 3.0
    assert run.duration == 8.0
    assert run.waste == 5 / 11
    assert (run.num_prefill_tokens, run.num_decode_tokens) == (8, 3)
    assert run.batch_sizes == (1, 1, 0, 1)
    assert run.block_use == (1 / 4, 2 / 4, 0.0, 2 / 4)
    assert run.fragmentation == (0.0, 3 / 8, 0.0, 2 / 8)


def test_a_run_that_is_not_over_says_what_is_known() -> None:
    run = run_metrics(PREEMPTED[:11])
    (a,) = run.requests
    assert (a.finish_reason, a.e2e, a.ttft, a.tpot) == (None, None, 2.0, None)
    run = run_metrics(PREEMPTED[:2])
    assert (run.requests[0].queue_time, run.requests[0].ttft) == (None, None)
    assert (run.duration, run.output_throughput, run.goodput(1, 1)) == (0.0, 0.0, 0.0)


def test_an_empty_log_has_no_numbers_and_no_errors() -> None:
    run = run_metrics([])
    assert run.requests == ()
    assert run.percentile("ttft", 50) is None
    assert "TTFT               none" in run.table()


def test_an_id_used_again_is_another_request() -> None:
    engine, _, _ = slow_engine()
    for number in (1, 3):
        engine.add_request([1], tokens(number), request_id="a")
        finish(engine)
    assert [r.num_output_tokens for r in request_metrics(engine.log)] == [1, 3]


def test_samples_are_counted_each() -> None:
    engine, _, _ = slow_engine()
    engine.generate([1, 2, 3, 4, 5, 6], SamplingParams(max_tokens=2, n=2))
    run = run_metrics(engine.log)
    assert [r.request_id for r in run.requests] == ["request-0#0", "request-0#1"]
    assert run.num_output_tokens == 4


def test_percentiles_over_requests_and_gaps() -> None:
    run = run_metrics(PREEMPTED)
    assert run.percentile("itl", 50) == 3.0
    assert run.percentile("itl", 99) == pytest.approx(3.49)
    assert (run.percentile("ttft", 99), run.percentile("tpot", 50)) == (2.0, 3.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_the_table() -> None:
    assert run_metrics(PREEMPTED).table().splitlines() == [
        "requests           1",
        "steps              4",
        "duration           8.000 s",
        "output throughput  0.4 tokens/s",
        "total throughput   0.9 tokens/s",
        "prefill tokens     8",
        "decode tokens      3",
        "TTFT               2.000 s p50, 2.000 s p99",
        "TPOT               3.000 s p50, 3.000 s p99",
        "ITL                3.000 s p50, 3.490 s p99",
        "batch size         0.8 mean, 1.0 peak",
        "blocks used        31.2% mean, 50.0% peak",
        "fragmentation      15.6% mean, 37.5% peak",
        "prefix hit rate    0.0%",
        "waste              45.5%",
        "preemptions        1",
    ]


def test_metrics_read_a_log_from_a_file_alike(tmp_path: Any) -> None:
    engine = two_requests()
    engine.log.to_jsonl(tmp_path / "log.jsonl")
    assert run_metrics(ev.EventLog.from_jsonl(tmp_path / "log.jsonl")) == run_metrics(engine.log)


def test_metrics_are_values() -> None:
    run = run_metrics(PREEMPTED)
    assert isinstance(run, RunMetrics)
    with pytest.raises(AttributeError):
        run.duration = 1.0  # type: ignore[misc]


def test_metrics_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import paged_engine.metrics"
    subprocess.run([sys.executable, "-c", code], check=True)
