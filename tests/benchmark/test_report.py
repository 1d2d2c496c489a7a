"""The numbers of a report, worked out by hand from a log whose times are known."""

from __future__ import annotations

import pytest

from paged_engine import events as ev
from paged_engine.benchmark.load import Answer
from paged_engine.benchmark.report import Level, Report, Spread, Targets, Timeline, make_report

# Blocks of 4 tokens, 8 of them.  a has 5 tokens of prompt and makes 3; b has 2 and makes 2.
# b was due at 11 and handed over at 12.
LOG: list[ev.Event] = [
    ev.EngineStarted(0.0, 0, 8, 4, 4, 64),
    ev.Queued(10.0, 0, "a", (1, 2, 3, 4, 5), 3, 0, 0),
    ev.StepBegan(10.0, 1, 64),
    ev.Admitted(10.0, 1, "a", 0),
    ev.Allocated(10.0, 1, "a", (0, 1)),
    ev.Scheduled(10.0, 1, "a", 0, 5),
    ev.Token(12.0, 1, "a", 9),
    ev.StepEnded(12.0, 1, 5),
    ev.Queued(12.0, 1, "b", (6, 7), 2, 0, 0),
    ev.StepBegan(12.0, 2, 64),
    ev.Admitted(12.0, 2, "b", 0),
    ev.Allocated(12.0, 2, "b", (2,)),
    ev.Scheduled(12.0, 2, "a", 5, 1),
    ev.Scheduled(12.0, 2, "b", 0, 2),
    ev.Token(15.0, 2, "a", 9),
    ev.Token(15.0, 2, "b", 9),
    ev.StepEnded(15.0, 2, 3),
    ev.StepBegan(15.0, 3, 64),
    ev.Scheduled(15.0, 3, "a", 6, 1),
    ev.Scheduled(15.0, 3, "b", 2, 1),
    ev.Token(16.0, 3, "a", 9),
    ev.Token(16.0, 3, "b", 9),
    ev.Freed(16.0, 3, "a", (0, 1)),
    ev.Finished(16.0, 3, "a", "length"),
    ev.Freed(16.0, 3, "b", (2,)),
    ev.Finished(16.0, 3, "b", "length"),
    ev.StepEnded(16.0, 3, 2),
]
ANSWERS = [Answer("a", 10.0, 10.0, (9, 9, 9)), Answer("b", 11.0, 12.0, (9, 9))]


def report(ttft: float = 4.0, tpot: float = 2.0) -> Report:
    return make_report(LOG, ANSWERS, Targets(ttft, tpot))


def test_what_the_starting_point_printed() -> None:
    r = report()
    assert (r.num_requests, r.num_prompt_tokens, r.num_output_tokens) == (2, 7, 5)
    assert (r.total_time, r.tokens_per_second) == (6.0, 5 / 6)
    assert (r.num_steps, r.num_prefill_steps, r.num_decode_steps) == (3, 2, 2)
    assert r.prefill_time == 5.0  # two steps, of 2 s and 3 s
    assert r.prefill_batch == Level(1.0, 1)


def test_latencies_count_from_when_a_request_was_due() -> None:
    """Of two values, p99 lies 99 % of the way from the lower to the higher."""
    r = report()
    assert r.ttft == Spread(3.0, pytest.approx(3.98))  # 2 and 4
    assert r.tpot == Spread(1.5, pytest.approx(1.99))  # 2 and 1
    assert r.itl == Spread(1.0, pytest.approx(2.96))  # 3, 1 and 1
    assert r.e2e == Spread(5.5, pytest.approx(5.99))  # 6 and 5
    assert r.queue_time == Spread(0.5, pytest.approx(0.99))  # 0 and 1
    assert r.submit_delay == Spread(0.5, pytest.approx(0.99))  # 0 and 1


@pytest.mark.parametrize(
    ("ttft", "tpot", "good"), [(4.0, 2.0, 2), (3.9, 2.0, 1), (4.0, 1.9, 1), (3.9, 1.9, 0)]
)
def test_goodput(ttft: float, tpot: float, good: int) -> None:
    """a: TTFT 2, TPOT 2; b: TTFT 4 since it was due, TPOT 1."""
    r = report(ttft, tpot)
    assert (r.num_good, r.goodput) == (good, good / 6)
    assert r.targets == Targets(ttft, tpot)


def test_batch_blocks_and_fragmentation() -> None:
    r = report()
    assert r.batch_size == Level(5 / 3, 2)
    assert r.block_use == Level(pytest.approx(1 / 3), 3 / 8)  # 2, 3 and 3 of 8
    # 5 of 8 slots filled, then 6 + 2 of 12, then 7 + 3 of 12
    assert r.fragmentation == Level(pytest.approx((3 / 8 + 4 / 12 + 2 / 12) / 3), 3 / 8)
    assert (r.num_preemptions, r.num_cached_tokens, r.prefix_hit_rate, r.waste) == (0, 0, 0, 0)


def test_the_timeline_begins_when_the_first_request_was_due() -> None:
    assert report().timeline == Timeline(
        began=(0.0, 2.0, 5.0),
        ended=(2.0, 5.0, 6.0),
        batch_size=(1, 2, 2),
        block_use=(2 / 8, 3 / 8, 3 / 8),
        num_new_tokens=(1, 2, 2),
    )


def test_prefix_hits_and_preemptions() -> None:
    """c finds 4 of its 5 tokens, loses its blocks, and computes everything again."""
    log: list[ev.Event] = [
        ev.EngineStarted(0.0, 0, 8, 4, 4, 64),
        ev.Queued(0.0, 0, "c", (1, 2, 3, 4, 5), 2, 0, 0),
        ev.StepBegan(0.0, 1, 64),
        ev.Admitted(0.0, 1, "c", 4),
        ev.Allocated(0.0, 1, "c", (0, 1)),
        ev.Scheduled(0.0, 1, "c", 4, 1),
        ev.Token(1.0, 1, "c", 9),
        ev.StepEnded(1.0, 1, 1),
        ev.StepBegan(1.0, 2, 64),
        ev.Freed(1.0, 2, "c", (0, 1)),
        ev.Preempted(1.0, 2, "c"),
        ev.StepEnded(1.5, 2, 0),
        ev.StepBegan(1.5, 3, 64),
        ev.Admitted(1.5, 3, "c", 0),
        ev.Allocated(1.5, 3, "c", (0, 1)),
        ev.Scheduled(1.5, 3, "c", 0, 6),
        ev.Token(2.0, 3, "c", 9),
        ev.Freed(2.0, 3, "c", (0, 1)),
        ev.Finished(2.0, 3, "c", "length"),
        ev.StepEnded(2.0, 3, 6),
    ]
    r = make_report(log, [Answer("c", 0.0, 0.0, (9, 9))])
    assert (r.num_preemptions, r.num_cached_tokens, r.prefix_hit_rate) == (1, 4, 4 / 5)
    assert r.waste == 5 / 7
    assert (r.num_steps, r.num_prefill_steps, r.num_decode_steps) == (3, 2, 1)


def test_one_token_has_no_tpot() -> None:
    log = [e for e in LOG if getattr(e, "request_id", "b") == "b" and e.time < 15.5]
    r = make_report(log, ANSWERS[1:])
    assert (r.tpot, r.itl, r.e2e) == (None, None, None)
    assert "TPOT                none" in r.table()


def test_the_table() -> None:
    assert report().table().splitlines() == [
        "requests            2",
        "prompt tokens       7",
        "tokens generated    5",
        "total time          6.000 s",
        "tokens a second     0.83",
        "steps               3",
        "prefill steps       2",
        "prefill time        5.000 s, with the decoding beside it",
        "prefill batch size  1.0 mean, 1.0 peak",
        "decode steps        2",
        "TTFT                3.000 s p50, 3.980 s p99",
        "TPOT                1.500 s p50, 1.990 s p99",
        "ITL                 1.000 s p50, 2.960 s p99",
        "end to end          5.500 s p50, 5.990 s p99",
        "waiting in line     0.500 s p50, 0.990 s p99",
        "waiting for a step  0.500 s p50, 0.990 s p99",
        "goodput             0.33 requests/s, 2 of 2 requests",
        "                    (TTFT at most 4 s, TPOT at most 2 s)",
        "batch size          1.7 mean, 2.0 peak",
        "blocks used         33.3% mean, 37.5% peak",
        "fragmentation       29.2% mean, 37.5% peak",
        "preemptions         0, 0.0% of the tokens twice",
        "prefix hits         0 tokens, 0.0%",
    ]
