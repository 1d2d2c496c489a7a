"""What all commands have in common: help, usage, and streams that cannot be written to."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import paged_engine
from tests.cli.cli_helpers import COMMAND, environment, on_posix, run, start

COMMANDS = ["generate", "chat", "bench", "trace", "models"]
SHARED = ["--model", "--device", "--dtype", "--block-size", "--num-blocks"]


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments, "--help"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert asked.returncode == 0
    assert not re.search(r"\b(torch|transformers|numpy)\b", asked.stderr)
    for word in SHARED if arguments else COMMANDS:
        assert word in asked.stdout


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"paged-engine {paged_engine.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["sing", "a song"], ["--loud"]])
def test_without_a_command_it_is_wrong_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: paged-engine")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_wrong_usage(name: str) -> None:
    done = run(name, *(["-o", "-"] if name == "trace" else []), "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: paged-engine")
    assert "unrecognized arguments: --no-such-option" in done.stderr


@on_posix
def test_help_into_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("generate", "--help", stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        process = start("generate", "--help", stdout=full)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.decode() == "paged-engine: input or output: No space left on device\n"


@on_posix
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed_before_do_no_harm(closed: str) -> None:
    command = f'exec "$0" -m paged_engine generate --file /no/such/file {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    said = "" if "2>&-" in closed else "paged-engine: /no/such/file: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
