"""The benchmark's command: what it refuses before it loads anything, and whole runs of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from paged_engine.benchmark import command, results
from paged_engine.benchmark.__main__ import main
from paged_engine.benchmark.options import add_arguments, checked_peers
from paged_engine.benchmark.processes.engines import PEERS
from paged_engine.errors import InvalidConfigError

TINY = ["--model", "tiny", "--requests", "5", "--max-tokens", "24", "--num-blocks", "40"]


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


# Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "1", "--clients", "2"], "give one of them"),
        (["--rate", "0"], "--rate is 0.0; expected a number above 0"),
        (["--rate", "nan"], "--rate is nan"),
        (["--ttft", "-1"], "--ttft is -1.0"),
        (["--tpot", "inf"], "--tpot is inf"),
        (["--clients", "0"], "--clients is 0; expected at least 1"),
        (["--requests", "0"], "--requests is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--max-tokens", "1"], "--max-tokens is 1; expected at least 2"),
        (["--compare", "naive,vllm"], "'vllm'; expected some of naive,static,generate_batch"),
        (["--compare", "naive,none"], "'none'"),
        (["--compare", ""], "''"),
        (["--compare", "naive,naive"], "each name once"),
        (["--compare", "naive", "--rate", "1"], "at once"),
        (["--compare", "naive", "--clients", "1"], "at once"),
        (["--compare", "naive", "--static-batch", "4"], "--static-batch is for"),
        (["--static-batch", "0"], "--static-batch is 0"),
        (["--prompt-lengths", "1", "2"], "for the workload uniform, and this is standard"),
        (["--workload", "uniform", "--prompt-lengths", "3", "2"], "--prompt-lengths is 3 2"),
        (["--workload", "uniform", "--output-lengths", "0", "2"], "--output-lengths is 0 2"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--json", "."], "which is a folder"),
        (["--figure", "x.gif"], "ends in .png or .svg or .pdf"),
        (
            ["--peers", "naive,vllm"],
            "'vllm'; expected some of naive,naive-float32,static,generate_batch,vllm-eager",
        ),
        (["--peers", "naive,naive"], "each name once"),
        (["--peers", "none"], "'none'; expected some of"),
        (["--peers", "--compare", "naive"], "--compare is for the engine in this process"),
        (["--peers", "--rate", "1"], "--rate is for"),
        (["--peers", "--clients", "1"], "--clients is for"),
        (["--peers", "--device", "cuda"], "--device is cuda"),
        (["--peers", "--dtype", "float16"], "--dtype float16; with --peers expected"),
        (["--peers", "--model", "tiny"], "expected a folder with a model"),
        (["--peers", "naive", "--static-batch", "4"], "--static-batch is for --peers static"),
        (["--peers", "--peer-python", "vllm"], "--peer-python is vllm; expected NAME=PATH"),
        (["--peers", "--peer-python", "naive=/x"], "one of vllm, openvino, llama.cpp"),
        (["--peers", "--peer-python", "vllm=no/python"], "there is no file no/python"),
        (["--peer-python", "vllm=python"], "--peer-python is for --peers"),
        (["--peers", "--peer-limit", "0"], "--peer-limit is 0.0"),
        (["--concurrency", "0"], "max_num_seqs is 0"),
        (["--budget", "0"], "max_num_batched_tokens is 0"),
        (["--block-size", "0"], "block_size is 0"),
        (["--num-blocks", "0"], "num_blocks is 0"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(command, "_load_model", no_model)
    with pytest.raises(InvalidConfigError) as refused:
        command.run(parsed(*arguments))
    assert says in str(refused.value)


def test_a_figure_without_matplotlib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfigError, match="needs matplotlib"):
        checked_peers(parsed("--figure", "x.png"))


@pytest.mark.parametrize(
    ("arguments", "peers"),
    [
        ([], ["naive", "static"]),
        (["--rate", "2"], []),
        (["--clients", "2"], []),
        (["--compare", "none"], []),
        (["--compare", "none", "--rate", "2"], []),
        (["--compare", "generate_batch,naive"], ["generate_batch", "naive"]),
        (["--peers"], [name for name in PEERS if name != "naive-float32"]),
        (["--peers", "--dtype", "bfloat16"], list(PEERS)),
        (["--peers", "naive-float32"], ["naive-float32"]),
        (["--peers", "openvino,naive"], ["openvino", "naive"]),
    ],
)
def test_who_is_compared_with(arguments: list[str], peers: list[str]) -> None:
    assert checked_peers(parsed(*arguments)) == peers


def test_rounds_are_three_side_by_side_and_one_otherwise() -> None:
    found = []
    for arguments in ([], ["--peers"], ["--peers", "--rounds", "5"]):
        options = parsed(*arguments)
        checked_peers(options)
        found.append(options.rounds)
    assert found == [1, 3, 5]


def test_options_need_no_torch() -> None:
    """`paged-engine --help` must answer at once."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import argparse; from paged_engine.benchmark.command import add_arguments\n"
        "parser = argparse.ArgumentParser(); add_arguments(parser); parser.parse_args(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("--workload", "--rate", "--clients", "--figure", "nano-vllm", "four instructions"):
        assert word in done.stdout


# Whole runs ------------------------------------------------------------------------------------


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table alone on stdout, progress on stderr, all numbers in the file."""
    files = ["--json", str(tmp_path / "r.json"), "--figure", str(tmp_path / "r.png")]
    compared = ["--compare", "naive,static,generate_batch", "--static-batch", "2"]
    assert main([*TINY, *files, *compared, "--rounds", "2", "--concurrency", "3"]) == 0
    said = capsys.readouterr()
    found = results.read(tmp_path / "r.json")
    assert said.out == found.table() + "\n"
    assert "round 2 of 2, paged_engine" in said.err
    assert (tmp_path / "r.png").stat().st_size > 1000
    assert [s.num_identical for s in found.standings] == [5, 5, 5, 5]
    assert [len(s.rates) for s in found.standings] == [2, 2, 2, 2]
    names = ["naive", "static batches of 2", "generate_batch", "paged_engine"]
    assert [s.name for s in found.standings] == names
    assert found.report.num_requests == 5
    assert found.report.batch_size.peak == 3
    assert found.settings.max_num_seqs == 3 and found.settings.num_blocks == 40
    assert found.report.num_output_tokens == found.standings[0].num_output_tokens


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (["--rate", "1000"], "open loop, 1000 requests a second at random"),
        (["--clients", "2"], "closed loop, clients: 2"),
    ],
)
def test_a_run_under_load(load: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *load]) == 0
    said = capsys.readouterr().out
    assert words in said
    assert "5 of 5 requests" in said
    assert "identical" not in said
    if "--clients" in load:
        assert "2.0 peak" in said  # never more than the clients


def test_shared_prefixes_hit_unless_caching_is_off(tmp_path: Path) -> None:
    work = [
        "--model",
        "tiny",
        "--workload",
        "shared-prefix",
        "--requests",
        "8",
        "--compare",
        "none",
    ]
    hits = []
    for caching in ("--prefix-caching", "--no-prefix-caching"):
        path = tmp_path / "r.json"
        main([*work, caching, "--budget", "256", "--compare", "none", "--json", str(path)])
        hits.append(results.read(path).report.num_cached_tokens)
    assert hits[0] >= 4 * 128 * 0.5 and hits[1] == 0


def test_a_pool_that_is_too_small_preempts(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    work = ["--workload", "uniform", "--prompt-lengths", "30", "32", "--output-lengths", "30", "32"]
    small = ["--num-blocks", "8", "--requests", "4", "--compare", "naive", "--json", str(path)]
    assert main(["--model", "tiny", *work, *small]) == 0
    found = results.read(path)
    assert found.report.num_preemptions > 0 and found.report.waste > 0
    assert found.standings[-1].num_identical == 4


def test_a_workload_that_does_not_fit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--workload", "long-prompt", "--num-blocks", "8"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "1056 tokens" in line and "--max-tokens 129" in line


def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_load_model", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err.strip() == "bench: interrupted"
