"""The command line as a user has it: a process with streams, signals and an exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paged_engine

REPO = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "paged_engine.cli"]
on_posix = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as on POSIX systems")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a tokenizer for which every byte is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from paged_engine.models import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny(vocab_size=256, eos_token_id=None, max_position_embeddings=16_384).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    settings = {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    dropped = {"PAGED_ENGINE_MODEL", "PYTHONUNBUFFERED"}  # the latter would flush for us
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return {**kept, **settings, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8", **more}


def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(**more),
        timeout=120,
        check=False,
    )


def expected(folder: Path, prompt: str, max_tokens: int) -> str:
    from paged_engine import ContinuousEngine, SamplingParams

    engine = ContinuousEngine.from_pretrained(str(folder), device="cpu", num_blocks=32)
    return engine.generate(prompt, SamplingParams(max_tokens=max_tokens))[0].text


def test_text_goes_to_stdout_and_nothing_else(model_folder: Path) -> None:
    done = run("generate", "hello", "--model", str(model_folder), "--max-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(model_folder, "hello", 12) + "\n"


def test_without_streaming_it_is_the_same_text(model_folder: Path) -> None:
    from_stdin = run(
        *["generate", "-", "--no-stream", "--max-tokens", "12"],
        stdin="hello",
        PAGED_ENGINE_MODEL=str(model_folder),
    )
    assert (from_stdin.returncode, from_stdin.stderr) == (0, "")
    assert from_stdin.stdout == expected(model_folder, "hello", 12) + "\n"


def test_verbose_speaks_on_stderr_and_options_reach_the_engine(model_folder: Path) -> None:
    done = run(
        *["generate", "hello", "--model", str(model_folder), "--max-tokens", "12", "--verbose"],
        *["--block-size", "4", "--num-blocks", "9"],
    )
    assert done.returncode == 0
    assert done.stdout == expected(model_folder, "hello", 12) + "\n"
    assert "[Alloc] request-0: blocks 0 1\n" in done.stderr  # 5 tokens in blocks of 4
    assert "[Finish] request-0: length" in done.stderr


def test_a_seed_repeats_a_draw(model_folder: Path) -> None:
    hot = [
        "generate",
        "hi",
        "--model",
        str(model_folder),
        "--max-tokens",
        "8",
        "--temperature",
        "2",
    ]
    first, same, other = (run(*hot, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == same != other


def test_text_is_streamed_as_it_comes(model_folder: Path) -> None:
    """A few bytes at a time, and not a buffer when it is full."""
    long = [*COMMAND, "generate", "hello", "--model", str(model_folder), "--max-tokens", "4000"]
    with subprocess.Popen(long, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert 0 < len(os.read(process.stdout.fileno(), 65_536)) < 500
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no/such/folder"], "is not there"),
        (["--model", "."], "holds no config.json"),
        (["--temperature", "-1"], "temperature is -1.0; expected"),
        (["--max-tokens", "0"], "max_tokens is 0; expected"),
        (["--block-size", "0"], "block_size is 0; expected"),
        (["--device", "cuda"], "torch finds no CUDA device"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, "generate", "hello", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paged-engine: ") and said in line


def test_a_prompt_that_does_not_fit_is_refused(model_folder: Path) -> None:
    done = run("generate", "hello", "--model", str(model_folder), "--num-blocks", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "the request needs 133 tokens" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["sing", "a song"], ["generate", "a", "--max-tokens", "many"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: paged-engine")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_and_version_import_no_torch(arguments: list[str]) -> None:
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert asked.returncode == 0 and asked.stdout
    assert not re.search(r"\b(torch|transformers|numpy)\b", asked.stderr)


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"paged-engine {paged_engine.__version__}\n"


def slow(model_folder: Path, **pipes: int) -> subprocess.Popen[bytes]:
    """A generation that takes minutes, some way into its output."""
    process = subprocess.Popen(
        [*COMMAND, "generate", "hello", "--model", str(model_folder), "--max-tokens", "15000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        **pipes,
    )
    assert process.stdout is not None and process.stdout.read(5)
    return process


@on_posix
def test_ctrl_c_ends_it_with_130(model_folder: Path) -> None:
    process = slow(model_folder)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().strip() == "paged-engine: interrupted"


@on_posix
def test_a_closed_pipe_ends_it_quietly(model_folder: Path) -> None:
    process = slow(model_folder)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    started = time.monotonic()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), said) == (0, b"")
    assert time.monotonic() - started < 60
