"""The export for Perfetto: every record as the format documents it, and true to the log."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig, EventLog, PagedEngineError, SamplingParams
from paged_engine import events as ev
from paged_engine.metrics import run_metrics
from paged_engine.visualizer import state_at
from paged_engine.visualizer.perfetto import FIRST_REQUEST, export_perfetto, trace_records
from tests.helpers.fakes import OracleModel

Record = dict[str, Any]

# The fields of each phase, and their types; all of them are there, and no others.
EVERY = {"ph": str, "name": str, "pid": int, "tid": int}
TIMED = {**EVERY, "cat": str, "ts": int}
FIELDS: dict[str, dict[str, type]] = {
    "M": {**EVERY, "args": dict},
    "X": {**TIMED, "dur": int, "args": dict},
    "i": {**TIMED, "s": str, "args": dict},
    "C": {**TIMED, "args": dict},
    "s": {**TIMED, "id": int},
    "f": {**TIMED, "id": int, "bp": str},
}
METADATA = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_sort_index": ("sort_index", int),
}


def a_run(**options: int) -> EventLog:
    """Chunks, an injection, hits, preemptions, failed steps, an abort, one that is not finished.

    The clock goes on by a millisecond whenever it is read.
    """
    model, ticks = OracleModel(), itertools.count()
    config = {"num_blocks": 17, "block_size": 4, "max_num_batched_tokens": 24, "max_num_seqs": 6}
    served = ContinuousEngine(
        model,
        config=EngineConfig.from_options(**{**config, **options}),
        clock=lambda: 50 + next(ticks) / 1000,
    )
    base = model.num_forwards
    model.fail_at = {base + 1, base + 9}
    for first, length, tokens in [(30, 11, 24), (31, 30, 20), (32, 22, 28)]:
        served.add_request([first, *range(3, 2 + length)], SamplingParams(max_tokens=tokens))
    for number in range(200):
        if not served.has_unfinished:
            break
        if number == 9:
            served.add_request([30, *range(3, 20)], SamplingParams(max_tokens=9), request_id="late")
        if number == 14:
            served.abort("request-2")
        with suppress(RuntimeError):
            served.step()
    served.add_request([33, 3, 4], SamplingParams(max_tokens=9))
    served.step()
    return served.log


@pytest.fixture(scope="module")
def log() -> EventLog:
    return a_run()


@pytest.fixture(scope="module")
def records(log: EventLog) -> list[Record]:
    return trace_records(log)


def of(records: list[Record], phase: str, *names: str) -> list[Record]:
    return [r for r in records if r["ph"] == phase and (not names or r["name"] in names)]


def test_the_run_under_test_has_everything(log: EventLog, records: list[Record]) -> None:
    kinds = Counter(event.kind for event in log)
    for kind in ("hit", "preempted", "evicted", "aborted", "requeued", "computed", "finished"):
        assert kinds[kind], kind
    assert {r["ph"] for r in records} == FIELDS.keys()
    assert [r["args"]["failed"] for r in of(records, "X") if r["pid"] == 1].count(True) == 2


def test_every_record_has_the_documented_fields(records: list[Record]) -> None:
    for record in records:
        fields = FIELDS[record["ph"]]
        assert record.keys() == fields.keys(), record
        assert all(type(record[name]) is kind for name, kind in fields.items()), record
        assert record["pid"] > 0 and record["tid"] > 0
        assert record.get("ts", 0) >= 0 and record.get("dur", 0) >= 0
    for record in of(records, "M"):
        key, kind = METADATA[record["name"]]
        assert list(record["args"]) == [key] and type(record["args"][key]) is kind
    for record in of(records, "C"):
        assert all(type(value) is int and value >= 0 for value in record["args"].values())
    assert all(record["s"] in ("g", "p", "t") for record in of(records, "i"))
    assert all(record["bp"] == "e" for record in of(records, "f"))


def test_times_only_go_forward_and_names_come_first(records: list[Record]) -> None:
    phases = [r["ph"] for r in records]
    assert "M" not in phases[len(of(records, "M")) :]
    times = [r["ts"] for r in records if r["ph"] != "M"]
    assert times == sorted(times)


def test_every_track_has_one_name_and_a_number_of_its_own(
    log: EventLog, records: list[Record]
) -> None:
    names = {(r["pid"], r["tid"]): r["args"]["name"] for r in of(records, "M", "thread_name")}
    assert len(names) == len(of(records, "M", "thread_name"))
    assert len({tid for _, tid in names}) == len(names)  # viewers know a thread by it alone
    requests = [e.request_id for e in log if isinstance(e, ev.Queued)]
    assert list(names.values()) == ["scheduler", *requests]
    processes = {r["pid"]: r["args"]["name"] for r in of(records, "M", "process_name")}
    assert processes == {1: "engine", 2: "requests"}
    assert {(r["pid"], r["tid"]) for r in records if r["ph"] != "M"} <= names.keys()
    assert {r["args"]["sort_index"] for r in of(records, "M", "thread_sort_index")} == {
        tid for _, tid in names
    }


def nesting(slices: list[Record]) -> int:
    """How deep they nest, in the order in which they stand; fails if two overlap otherwise."""
    stack: list[Record] = []
    deepest = 0
    for inner in slices:
        while stack and stack[-1]["ts"] + stack[-1]["dur"] <= inner["ts"]:
            stack.pop()
        for outer in stack:
            assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"], (outer, inner)
        stack.append(inner)
        deepest = max(deepest, len(stack))
    return deepest


@pytest.mark.parametrize("budget", [1, 3, 24, 100])
@pytest.mark.parametrize("num_blocks", [13, 17, 60])
def test_slices_of_a_track_lie_in_each_other_or_apart(budget: int, num_blocks: int) -> None:
    records = trace_records(a_run(num_blocks=num_blocks, max_num_batched_tokens=budget))
    tracks: dict[int, list[Record]] = {}
    for record in of(records, "X"):
        tracks.setdefault(record["tid"], []).append(record)
    assert len(tracks) == 6
    for thread, slices in tracks.items():
        assert nesting(slices) == (1 if thread == 1 else 2)
        if thread > 1:  # the life is around everything else
            (life,) = (s for s in slices if "reason" in s["args"])
            assert slices[0] is life


def test_the_check_of_nesting_finds_an_overlap() -> None:
    def slices(*pairs: tuple[int, int]) -> list[Record]:
        return [{"ts": ts, "dur": dur} for ts, dur in pairs]

    assert nesting(slices((0, 9), (0, 3), (3, 6), (3, 1))) == 3
    with pytest.raises(AssertionError):
        nesting(slices((0, 9), (3, 7)))


def test_the_counters_are_what_replay_says_at_every_step(
    log: EventLog, records: list[Record]
) -> None:
    start = log[0].time
    ended = [e for e in log if isinstance(e, ev.StepEnded)]
    for event in ended:
        state, now = state_at(log, event.step), round((event.time - start) * 1e6)
        blocks = [r for r in of(records, "C", "blocks") if r["ts"] <= now][-1]["args"]
        assert blocks == {
            "used": state.num_used,
            "cached": state.num_cached,
            "free": len(state.blocks) - state.num_used - state.num_cached,
        }
        requests = [r for r in of(records, "C", "requests") if r["ts"] <= now][-1]["args"]
        statuses = Counter(r.status for r in state.requests.values())
        assert requests["in line"] == statuses["waiting"] + statuses["preempted"]
        scheduled = sum(e.step == event.step for e in log.of_kind("scheduled"))
        # a step that takes nothing in leaves the batch as it was
        assert not scheduled or requests["batch"] == (scheduled if statuses["running"] else 0)
    peaks = [r["args"]["used"] for r in of(records, "C", "blocks")]
    assert max(peaks) == max(round(use * 17) for use in run_metrics(log).block_use)


def test_every_scheduled_piece_is_a_slice_with_its_tokens(
    log: EventLog, records: list[Record]
) -> None:
    threads = {
        r["args"]["name"]: r["tid"] for r in of(records, "M", "thread_name") if r["pid"] == 2
    }
    wanted = [
        (threads[e.request_id], e.step, e.start, e.num_tokens)
        for e in log
        if isinstance(e, ev.Scheduled)
    ]
    pieces = [r for r in of(records, "X") if "start" in r["args"]]
    found = [
        (r["tid"], r["args"]["step"], r["args"]["start"], r["args"]["num_tokens"]) for r in pieces
    ]
    assert sorted(found) == sorted(wanted)
    for piece in pieces:
        kind, _, number = piece["name"].partition(" ")
        assert kind in ("prefill", "recompute", "decode")
        assert number == ("" if kind == "decode" else str(piece["args"]["num_tokens"]))
    steps = of(records, "X", *(f"step {n}" for n in range(1000)))
    for step in steps:
        inside = [p for p in pieces if p["args"]["step"] == step["args"]["step"]]
        assert step["args"]["num_requests"] == len(inside)
        spent = sum(p["args"]["num_tokens"] for p in inside)
        assert step["args"]["num_tokens"] == (0 if step["args"]["failed"] else spent)
        assert all(p["args"].get("failed", False) == step["args"]["failed"] for p in inside)
        assert all(step["ts"] <= p["ts"] for p in inside)
        assert all(p["ts"] + p["dur"] <= step["ts"] + step["dur"] for p in inside)


def test_what_is_said_of_each_request_is_what_happened(
    log: EventLog, records: list[Record]
) -> None:
    metrics = {r.request_id: r for r in run_metrics(log).requests}
    lives = {r["name"]: r for r in of(records, "X") if "reason" in r["args"]}
    assert lives.keys() == metrics.keys()
    for name, life in lives.items():
        args, truth = life["args"], metrics[name]
        assert args["reason"] == (truth.finish_reason or "unfinished")
        assert args["num_output_tokens"] == truth.num_output_tokens
        assert args["num_prompt_tokens"] == truth.num_prompt_tokens
        marks = [r for r in of(records, "i", "preempted") if r["tid"] == life["tid"]]
        assert len(marks) == truth.num_preemptions
        if truth.e2e is not None:
            assert life["dur"] == pytest.approx(truth.e2e * 1e6, abs=1)
    assert len(of(records, "i", "evicted")) == len(log.of_kind("evicted"))
    (injected,) = of(records, "i", "injected")
    assert injected["tid"] == lives["late"]["tid"] and injected["args"] == {"after_step": 9}


def test_an_arrow_leads_from_each_preemption_to_the_slice_that_makes_up_for_it(
    records: list[Record],
) -> None:
    begins = {r["id"]: r for r in of(records, "s")}
    ends = {r["id"]: r for r in of(records, "f")}
    assert len(begins) == len(of(records, "s")) and len(ends) == len(of(records, "f"))
    assert ends and ends.keys() <= begins.keys()
    slices = of(records, "X")
    for number, end in ends.items():
        begin = begins[number]
        assert begin["tid"] == end["tid"] and begin["ts"] <= end["ts"]
        at_begin = {s["name"] for s in slices if (s["tid"], s["ts"]) == (begin["tid"], begin["ts"])}
        at_end = {s["name"] for s in slices if (s["tid"], s["ts"]) == (end["tid"], end["ts"])}
        assert "preempted" in at_begin
        assert any(name.startswith(("recompute", "prefill", "decode")) for name in at_end)


# By hand ---------------------------------------------------------------------------------------

BY_HAND: list[ev.Event] = [
    ev.EngineStarted(100.0, 0, 4, 2, 2, 8),
    ev.Queued(100.001, 0, "a", (5, 6, 7), 4, 0, 0),
    ev.StepBegan(100.002, 1, 8),
    ev.Admitted(100.003, 1, "a"),
    ev.Allocated(100.003, 1, "a", (0, 1)),
    ev.Scheduled(100.003, 1, "a", 0, 3),
    ev.Token(100.010, 1, "a", 9, "hi"),
    ev.Cached(100.011, 1, 0, 77),
    ev.StepEnded(100.011, 1, 3),
    ev.Queued(100.0115, 1, "b", (5,), 2, 1, 0),
    ev.StepBegan(100.012, 2, 8),
    ev.Freed(100.013, 2, "a", (0, 1)),
    ev.Preempted(100.013, 2, "a"),
    ev.Evicted(100.013, 2, 0),
    ev.StepEnded(100.014, 2, 0),
    ev.StepBegan(100.020, 3, 8),
    ev.Admitted(100.021, 3, "a"),
    ev.Allocated(100.021, 3, "a", (2, 3)),
    ev.Scheduled(100.021, 3, "a", 0, 4),
    ev.Token(100.030, 3, "a", 8, "!"),
    ev.Freed(100.031, 3, "a", (2, 3)),
    ev.Finished(100.031, 3, "a", "length"),
    ev.StepEnded(100.032, 3, 4),
    ev.Aborted(100.040, 3, "b"),
]


def test_a_log_made_by_hand_gives_these_records() -> None:
    a, b = FIRST_REQUEST, FIRST_REQUEST + 1
    engine = {"cat": "engine", "pid": 1, "tid": 1}
    on_a = {"cat": "request", "pid": 2, "tid": a}
    on_b = {"cat": "request", "pid": 2, "tid": b}

    def named(what: str, pid: int, tid: int, **args: Any) -> Record:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}

    def piece(track: Record, ts: int, dur: int, name: str, **args: Any) -> Record:
        return {"ph": "X", "name": name, **track, "ts": ts, "dur": dur, "args": args}

    def counted(ts: int, name: str, **values: int) -> Record:
        args = {key.replace("_", " "): value for key, value in values.items()}
        return {"ph": "C", "name": name, **engine, "ts": ts, "args": args}

    def mark(track: Record, ts: int, name: str, **args: int) -> Record:
        return {"ph": "i", "name": name, **track, "ts": ts, "s": "t", "args": args}

    life = {"num_prompt_tokens": 3, "max_tokens": 4, "priority": 0, "num_cached_tokens": 0}
    assert trace_records(BY_HAND) == [
        named("process_name", 1, 1, name="engine"),
        named("process_name", 2, 2, name="requests"),
        named("thread_name", 1, 1, name="scheduler"),
        named("thread_name", 2, a, name="a"),
        named("thread_name", 2, b, name="b"),
        named("process_sort_index", 1, 1, sort_index=1),
        named("process_sort_index", 2, 2, sort_index=2),
        named("thread_sort_index", 1, 1, sort_index=1),
        named("thread_sort_index", 2, a, sort_index=a),
        named("thread_sort_index", 2, b, sort_index=b),
        counted(0, "blocks", used=0, cached=0, free=4),
        counted(0, "requests", batch=0, in_line=0),
        piece(on_a, 1000, 30_000, "a", **life, num_output_tokens=2, reason="length"),
        piece(on_a, 1000, 2000, "waiting"),
        counted(1000, "requests", batch=0, in_line=1),
        piece(engine, 2000, 9000, "step 1", step=1, budget=8, num_tokens=3, num_requests=1)
        | {"args": {"step": 1, "budget": 8, "num_tokens": 3, "num_requests": 1, "failed": False}},
        piece(on_a, 3000, 7000, "prefill 3", step=1, start=0, num_tokens=3, token_id=9, text="hi"),
        counted(3000, "blocks", used=2, cached=0, free=2),
        counted(3000, "requests", batch=1, in_line=0),
        piece(
            on_b,
            11_500,
            28_500,
            "b",
            num_prompt_tokens=1,
            max_tokens=2,
            priority=1,
            num_output_tokens=0,
            reason="abort",
        ),
        piece(on_b, 11_500, 28_500, "waiting"),
        mark(on_b, 11_500, "injected", after_step=1),
        counted(11_500, "requests", batch=1, in_line=1),
        piece(
            engine, 12_000, 2000, "step 2", step=2, budget=8, num_tokens=0, num_requests=0,
            failed=False,
        ),
        piece(on_a, 13_000, 8000, "preempted", step=2),
        {"ph": "s", "name": "admitted again", **on_a, "ts": 13_000, "id": 1},
        mark(on_a, 13_000, "preempted", step=2),
        mark(engine, 13_000, "evicted", step=2, block=0),
        counted(13_000, "blocks", used=0, cached=0, free=4),
        counted(13_000, "requests", batch=0, in_line=2),
        piece(
            engine, 20_000, 12_000, "step 3", step=3, budget=8, num_tokens=4, num_requests=1,
            failed=False,
        ),
        piece(
            on_a, 21_000, 9000, "recompute 4", step=3, start=0, num_tokens=4, token_id=8, text="!"
        ),
        {"ph": "f", "name": "admitted again", **on_a, "ts": 21_000, "id": 1, "bp": "e"},
        counted(21_000, "blocks", used=2, cached=0, free=2),
        counted(21_000, "requests", batch=1, in_line=1),
        counted(31_000, "blocks", used=0, cached=0, free=4),
        counted(31_000, "requests", batch=0, in_line=1),
        counted(40_000, "requests", batch=0, in_line=0),
    ]  # fmt: skip


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    events = [
        ev.EngineStarted(9.0, 0, 4, 2, 2, 8),
        ev.Queued(9.5, 0, "a", (5,), 1, 0, 0),
        ev.Aborted(9.2, 0, "a"),
    ]
    slices = of(trace_records(events), "X")
    assert [(s["name"], s["ts"], s["dur"]) for s in slices] == [
        ("a", 500_000, 0),
        ("waiting", 500_000, 0),
    ]


# The file --------------------------------------------------------------------------------------


def test_the_file_is_the_format_s_json(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    export_perfetto(log, path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["traceEvents"] == trace_records(log)
    assert document["displayTimeUnit"] == "ms"


def test_any_name_can_be_written(tmp_path: Path) -> None:
    events = [ev.EngineStarted(0, 0, 4, 2, 2, 8), ev.Queued(0, 0, 'a"\ud800\n', (5,), 1, 0, 0)]
    export_perfetto(events, tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    (name,) = (r["args"]["name"] for r in of(json.loads(text)["traceEvents"], "M")[3:4])
    assert name == 'a"?\n'


def test_a_log_that_lost_its_beginning_is_refused(log: EventLog, tmp_path: Path) -> None:
    for events in ([], list(log)[5:]):
        with pytest.raises(PagedEngineError, match="max_events"):
            export_perfetto(events, tmp_path / "run.json")
    assert not list(tmp_path.iterdir())
