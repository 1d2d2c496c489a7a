"""`paged-engine trace`: the file it writes, and when it writes none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paged_engine.cli import main
from paged_engine.events import EventLog, Preempted, Queued
from paged_engine.metrics import run_metrics
from paged_engine.replay import forget_finished, replay
from tests.cli.cli_helpers import interrupted, on_posix, reader_gone, run, start

TINY = ["trace", "--model", "tiny", "--device", "cpu", "--no-progress"]
Streams = pytest.CaptureFixture[str]


def test_the_log_can_be_read_and_replayed(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    tight = ["--block-size", "4", "--num-blocks", "12", "--max-tokens", "24", "--ignore-eos"]
    done = run(
        *[*TINY, *tight, "-o", str(file), "alpha", "beta", "gamma"],
        *["--inject", "7:delta", "--inject", "3:epsilon"],
    )
    assert (done.returncode, done.stdout) == (0, "")
    log = EventLog.from_jsonl(file)
    state = forget_finished(replay(log))
    assert not state.requests and state.num_used == 0 and len(state.blocks) == 12
    joined = [
        (e.step + 1, bytes(e.prompt_token_ids).decode())
        for e in log.of_kind("queued")
        if isinstance(e, Queued)
    ]
    assert joined == [(1, "alpha"), (1, "beta"), (1, "gamma"), (3, "epsilon"), (7, "delta")]
    assert any(isinstance(event, Preempted) for event in log)
    metrics = run_metrics(log)
    peak = round(max(metrics.block_use) * 12)
    assert done.stderr == (
        f"paged-engine: {len(log)} events written to {file}: {metrics.num_steps} steps, "
        f"5 requests, 120 tokens, at most {peak} of 12 blocks in use, "
        f"{metrics.num_preemptions} preemptions\n"
    )


def test_without_a_prompt_there_are_some_and_a_late_injection_joins_at_once(
    capsys: Streams,
) -> None:
    late = ["--inject", "900:late", "--max-tokens", "3", "-o", "-", "--ignore-eos"]
    assert main([*TINY, *late]) == 0
    out, err = capsys.readouterr()
    log = EventLog.from_jsonl(out.splitlines())
    assert len(log.of_kind("queued")) == 5
    assert log.of_kind("queued")[-1].step == 3
    assert "all had ended after step 3, so --inject 900 joins in 4" in err
    assert re.search(r"events written to stdout: 6 steps, 5 requests, 15 tokens", err)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("kept.jsonl", "kept.jsonl is there already; give another name, or --force"),
        (".", ". is a folder"),
        ("no/such/folder/log", "the folder no/such/folder is not there"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(output: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text("kept")
    done = run(*TINY, "a", "-o", output, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and said in done.stderr
    assert (tmp_path / "kept.jsonl").read_text() == "kept"


def test_force_overwrites(tmp_path: Path, capsys: Streams) -> None:
    file = tmp_path / "log"
    file.write_text("old\n" * 10_000)
    assert main([*TINY, "a", "--max-tokens", "2", "-o", str(file), "--force"]) == 0
    assert len(EventLog.from_jsonl(file)) > 5


def test_a_device_is_written_to_without_force(capsys: Streams) -> None:
    assert main([*TINY, "a", "--max-tokens", "2", "-o", "/dev/null"]) == 0


@pytest.mark.parametrize("inject", ["5", "0:a", "x:a", "3:", "-1:a", ":"])
def test_an_injection_has_a_step_and_a_prompt(inject: str) -> None:
    done = run(*TINY, "-o", "-", f"--inject={inject}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{inject!r} is not STEP:PROMPT, such as 5:Hello" in done.stderr


def test_an_output_is_required() -> None:
    done = run("trace", "a")
    assert done.returncode == 2 and "required: -o/--output" in done.stderr


@on_posix
def test_ctrl_c_leaves_no_file(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    arguments = ["trace", "a", "-o", str(file), "--max-tokens", "15000", "--verbose"]
    process = start(*arguments, "--model", str(model_folder))
    assert process.stderr is not None
    while b"[Step 3]" not in process.stderr.readline():
        pass
    code, said = interrupted(process)
    assert code == 130 and said.endswith("paged-engine: interrupted\n")
    assert not file.exists()


@on_posix
def test_a_closed_pipe_ends_it_quietly() -> None:
    """The log is longer than what a pipe holds."""
    process = start(*TINY, "-o", "-", "--max-tokens", "300", "--ignore-eos")
    assert process.stdout is not None and process.stdout.read(5)
    assert reader_gone(process) == (0, "")
