"""Results as JSON and as a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paged_engine.benchmark import results as results_module
from paged_engine.benchmark.comparison import Parting, Standing
from paged_engine.benchmark.figure import draw, staircase, token_rates
from paged_engine.benchmark.machine import this_machine
from paged_engine.benchmark.report import Level, Report, Spread, Targets, Timeline
from paged_engine.benchmark.results import Results, Settings
from paged_engine.errors import PagedEngineError

# Two steps with a pause of five seconds between them.
TIMELINE = Timeline(
    began=(0.0, 2.0, 8.0),
    ended=(2.0, 3.0, 10.0),
    batch_size=(1, 2, 1),
    block_use=(0.25, 0.5, 0.25),
    num_new_tokens=(4, 3, 2),
)
REPORT = Report(
    num_requests=2,
    num_prompt_tokens=20,
    num_output_tokens=9,
    total_time=10.0,
    tokens_per_second=0.9,
    num_steps=3,
    num_prefill_steps=1,
    prefill_time=2.0,
    prefill_batch=Level(1.0, 1),
    num_decode_steps=2,
    ttft=Spread(1.0, 2.0),
    tpot=None,
    itl=None,
    e2e=Spread(1.0, 2.0),
    queue_time=Spread(0.0, 0.0),
    submit_delay=Spread(0.0, 0.0),
    targets=Targets(),
    goodput=0.2,
    num_good=2,
    batch_size=Level(4 / 3, 2),
    block_use=Level(1 / 3, 0.5),
    fragmentation=Level(0.1, 0.2),
    num_preemptions=1,
    num_cached_tokens=3,
    prefix_hit_rate=0.15,
    waste=0.0,
    timeline=TIMELINE,
)
RESULTS = Results(
    created="2026-01-02T03:04:05+00:00",
    settings=Settings(
        model="a model",
        dtype="float32",
        device="cpu",
        workload="standard",
        seed=0,
        max_tokens=None,
        load="all requests at once",
        rate=None,
        clients=None,
        max_num_seqs=32,
        max_num_batched_tokens=512,
        block_size=16,
        num_blocks=64,
        prefix_caching=True,
        num_rounds=1,
    ),
    machine=this_machine(torch.device("cpu")),
    round=1,
    report=REPORT,
    standings=(
        Standing("naive", (4.0,), 9, 2, 2),
        Standing("generate_batch", (), 9, 2, failure="RuntimeError: no"),
        Standing("paged_engine", (1.0,), 9, 2, 1, (Parting(1, 0, 1e-5),)),
    ),
)


def test_json_and_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    RESULTS.write(path)
    assert results_module.read(path) == RESULTS
    values = json.loads(path.read_text())
    assert values["schema"] == 1
    assert values["settings"]["workload"] == "standard"
    assert values["report"]["ttft"] == {"p50": 1.0, "p99": 2.0}
    assert values["report"]["timeline"]["batch_size"] == [1, 2, 1]
    assert values["standings"][2]["partings"] == [{"job": 1, "position": 0, "margin": 1e-5}]


def test_the_machine_is_part_of_it() -> None:
    machine = this_machine(torch.device("cpu"))
    assert machine.torch == torch.__version__
    assert machine.threads == torch.get_num_threads()
    assert machine.cores >= 1 and machine.cpu and machine.gpu is None
    assert machine.python == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "KeyError: 'schema'"),
        ("[1]", "holds no results"),
        ("nonsense", "holds no results"),
        ('{"schema": 99}', "schema version 99; expected 1"),
        ('{"schema": 1, "created": ""}', "KeyError: 'settings'"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(PagedEngineError, match=says):
        results_module.read(path)


def test_the_table_has_settings_report_and_comparison() -> None:
    text = RESULTS.table()
    assert text.startswith("a model, float32, on ")
    assert "workload standard, seed 0; all requests at once" in text
    assert "at most 32 in a batch and 512 tokens a step, 64 blocks of 16, prefix caching on" in text
    assert REPORT.table() in text
    assert "paged_engine against it" in text and "generate_batch failed: RuntimeError: no" in text
    assert "the median one" not in text


def test_the_table_says_what_was_changed_and_which_round_it_is_of() -> None:
    settings = replace(RESULTS.settings, max_tokens=99, num_rounds=3, prefix_caching=False)
    text = replace(RESULTS, settings=settings, round=2).table()
    assert "seed 0, at most 99 tokens each;" in text
    assert "(all of round 2 of 3, the median one)" in text
    assert "prefix caching off" in text


@pytest.mark.parametrize(("load", "noisy"), [(None, False), (0.2, False), (3.64, True)])
def test_a_machine_that_others_use_is_told_of(load: float | None, noisy: bool) -> None:
    text = replace(RESULTS, machine=replace(RESULTS.machine, load_average=load)).table()
    assert ("load average 3.6 before it began" in text) is noisy


def test_without_a_comparison_there_is_no_table_of_one() -> None:
    alone = replace(RESULTS, standings=RESULTS.standings[-1:])
    assert "against it" not in alone.table()


# The figure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure_is_written(tmp_path: Path, ending: str, begins: bytes) -> None:
    path = tmp_path / f"figure.{ending}"
    draw(RESULTS, path)
    assert path.read_bytes().startswith(begins)


def test_the_figure_shows_the_three_quantities(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    draw(RESULTS, path)
    text = path.read_text()
    for label in ("requests in the batch", "share of blocks used", "output tokens a second"):
        assert f"<!-- {label} -->" in text


def test_the_staircase_falls_where_nothing_was_computed() -> None:
    """Not between the first two steps, which follow each other."""
    assert staircase(TIMELINE, TIMELINE.batch_size) == ([0, 2, 3, 8, 10], [1, 2, 0, 1, 0])
    empty = Timeline((), (), (), (), ())
    assert staircase(empty, ()) == ([], [])


def test_tokens_are_spread_over_their_steps() -> None:
    edges, rates = token_rates(TIMELINE, num_bins=5)
    assert edges == [0, 2, 4, 6, 8, 10]
    assert rates == pytest.approx([2, 1.5, 0, 0, 1])
    _, rates = token_rates(TIMELINE, num_bins=20)
    assert sum(rates) * 0.5 == pytest.approx(9)
    assert rates[:4] == pytest.approx([2, 2, 2, 2]) and rates[4:6] == pytest.approx([3, 3])


def test_a_step_that_takes_no_time_has_its_tokens_all_the_same() -> None:
    """As on a virtual clock."""
    _, rates = token_rates(Timeline((0.0, 1.0), (1.0, 1.0), (1, 1), (0, 0), (2, 3)), num_bins=2)
    assert sum(rates) * 0.5 == pytest.approx(5)


def test_matplotlib_is_imported_for_a_figure_only() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paged_engine.benchmark.__main__ import main\n"
        "sys.exit(main(['--model', 'tiny', '--requests', '1', '--max-tokens', '4', '--compare', "
        "'none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens generated" in done.stdout
