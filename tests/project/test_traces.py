"""The recorded traces: each replays to its end, shows what it is named for, and can be made again.

`python -m assets.make_traces` writes them.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from assets import make_traces
from assets.make_traces import FOLDER, SCENARIOS
from paged_engine import EventLog, PagedEngineError
from paged_engine import events as ev
from paged_engine.metrics import run_metrics
from paged_engine.replay import EngineState, reduce
from paged_engine.visualizer.lanes import read_run
from tests.helpers.fakes import OracleModel

SMALLEST_MARGIN = 1e-3  # between the two best tokens; any processor then chooses alike
LARGEST_FILE = 300_000


@cache
def trace(name: str) -> EventLog:
    return EventLog.from_jsonl(FOLDER / f"{name}.jsonl")


def timeless(log: EventLog) -> list[ev.Event]:
    return [replace(event, time=0.0) for event in log]


def test_there_is_a_trace_and_a_page_for_each_scenario_and_nothing_else() -> None:
    found = {path.name for path in FOLDER.iterdir()}
    assert found == {f"{name}.{kind}" for name in SCENARIOS for kind in ("jsonl", "html")}
    assert all(path.stat().st_size < LARGEST_FILE for path in FOLDER.iterdir())


# What they show --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_trace_replays_to_its_end_with_everybody_served(name: str) -> None:
    state, log = EngineState(), trace(name)
    for event in log:
        reduce(state, event)
        held = [block for r in state.requests.values() for block in r.block_table]
        assert all(block.ref_cnt == held.count(i) for i, block in enumerate(state.blocks))
    assert {r.status for r in state.requests.values()} <= {"stop", "length"}
    assert not state.num_used
    times = [event.time for event in log.of_kind("step_began", "step_ended")]
    assert times == sorted(times)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_trace_is_of_the_scenario_that_stands_in_the_script(name: str) -> None:
    log, scenario = trace(name), SCENARIOS[name]
    asked = [(a.name, a.after_step) for a in scenario.arrivals for _ in range(a.n)]
    queued = [e for e in log if isinstance(e, ev.Queued)]
    assert [(e.request_id.partition("#")[0], e.step) for e in queued] == asked
    started = log[0]
    assert isinstance(started, ev.EngineStarted)
    assert {key: getattr(started, key) for key in scenario.config} == scenario.config


def test_the_steady_batch_has_no_surprises() -> None:
    log = trace("steady_batch")
    lanes = read_run(log).lanes
    assert len(lanes) == 4 and {lane.queued for lane in lanes} == {0}
    assert not log.of_kind("preempted") and not any(lane.injected for lane in lanes)
    assert max(run_metrics(log).batch_sizes) == 4
    assert any(len(lane.chunks) > 1 for lane in lanes)  # a prompt is computed in two steps


def test_in_the_injection_others_decode_before_and_after() -> None:
    late = [lane for lane in read_run(trace("injection")).lanes if lane.injected]
    assert [lane.request_id for lane in late] == ["gravity", "hot"]
    for lane in late:
        at = lane.admitted[0]
        assert at == lane.queued + 1  # nobody had to end first
        others = [o for o in read_run(trace("injection")).lanes if o is not lane]
        decoding = [o for o in others if any(a < at <= b for a, b in o.decodes)]
        assert len(decoding) >= 3


def test_in_the_preemption_some_lose_their_blocks_and_end_well() -> None:
    log = trace("preemption")
    lost = [lane for lane in read_run(log).lanes if lane.preempted]
    assert lost and run_metrics(log).waste > 0
    for lane in lost:
        assert lane.admitted[-1] > lane.preempted[-1]
        assert lane.ended is not None and lane.ended[1] in ("stop", "length")
    assert max(run_metrics(log).block_use) == 1.0
    assert log.of_kind("evicted")


def test_in_the_prefix_sharing_blocks_are_hit_shared_and_copied() -> None:
    log = trace("prefix_sharing")
    assert len(log.of_kind("hit")) >= 5 and len(log.of_kind("copied")) >= 2
    assert run_metrics(log).prefix_hit_rate > 0.5
    state, most = EngineState(), 0
    for event in log:
        reduce(state, event)
        most = max([most, *(block.ref_cnt for block in state.blocks)])
    assert most >= 4
    forks = [e for e in log if isinstance(e, ev.Queued) and e.fork_of is not None]
    assert [e.fork_of for e in forks] == ["gravity#0", "gravity#0"]


# The pages -------------------------------------------------------------------------------------


def document_of(name: str) -> Any:
    page = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    found = re.search(r'const packed = "([\w+/=]+)"', page)
    assert found, "the page has no run in it"
    return json.loads(zlib.decompress(base64.b64decode(found.group(1))))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_page_holds_the_run_of_its_trace(name: str) -> None:
    log, frames = trace(name), document_of(name)["frames"]
    assert [f["s"] for f in frames] == [e.step for e in log if isinstance(e, ev.StepEnded)]
    operations = [operation for frame in frames for operation in frame["o"]]
    tokens = [e.token_id for e in log if isinstance(e, ev.Token)]
    assert [operation[2] for operation in operations if operation[0] == "k"] == tokens
    said = {o[2].partition("#")[0]: o[5] for o in operations if o[0] == "q"}
    assert said.keys() == {arrival.name for arrival in SCENARIOS[name].arrivals}
    assert all(len(words) > 5 for words in said.values())
    page = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)  # plays without a network


def test_pages_are_made_again_from_the_traces_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from paged_engine.models import default_model

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("no model is needed")

    monkeypatch.setattr(default_model, "load_model_and_tokenizer", refuse)
    for name in SCENARIOS:
        trace(name).to_jsonl(tmp_path / f"{name}.jsonl")
    make_traces.main(["--pages-only"], tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == len(SCENARIOS)
    for name in SCENARIOS:
        page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert page == (FOLDER / f"{name}.html").read_text(encoding="utf-8"), (
            "the page's program has changed: python -m assets.make_traces --pages-only"
        )
    (tmp_path / "injection.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(PagedEngineError, match="not an event"):
        make_traces.main(["--pages-only"], tmp_path)


# Made again ------------------------------------------------------------------------------------


def test_a_scenario_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_traces, "NEVER", 5)
    arrivals = [make_traces.Arrival(0, "a", [30, 3], 20)]
    scenario = make_traces.Scenario("x", arrivals, {"num_blocks": 8})
    with pytest.raises(RuntimeError, match="did not end"):
        make_traces.record(scenario, OracleModel(), None)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    from paged_engine.errors import ModelNotFoundError
    from paged_engine.models.default_model import load_model_and_tokenizer

    try:
        return load_model_and_tokenizer(None, dtype="float32", progress=False)
    except ModelNotFoundError as error:
        pytest.skip(f"the default model is not there: {error}")


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_trace_is_what_the_default_model_does_today(
    name: str, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paged_engine import engine_core

    real, margins = engine_core.sample, []

    def sample(logits: Any, requests: Any) -> Any:
        best = logits.float().topk(2, dim=-1).values
        margins.extend((best[:, 0] - best[:, 1]).tolist())
        return real(logits, requests)

    monkeypatch.setattr(engine_core, "sample", sample)
    log = make_traces.record(SCENARIOS[name], *loaded)
    assert timeless(log) == timeless(trace(name))
    assert len(margins) == len(log.of_kind("token"))
    assert min(margins) > SMALLEST_MARGIN
