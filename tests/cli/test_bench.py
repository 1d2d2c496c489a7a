"""`paged-engine bench`: that it is wired up; what it measures is tested beside the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from paged_engine.cli import main
from tests.cli.cli_helpers import interrupted, on_posix, run, start

SMALL = ["bench", "--model", "tiny", "--device", "cpu", "--requests", "2", "--max-tokens", "8"]


def test_the_table_goes_to_stdout_and_progress_to_stderr() -> None:
    done = run(*SMALL, "--compare", "none")
    assert done.returncode == 0, done.stderr
    assert "preemptions " in done.stdout and "preemptions " not in done.stderr
    assert "warming up" in done.stderr


def test_options_that_do_not_go_together_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--rate", "3", "--clients", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("paged-engine: ") and err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--json", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("paged-engine: ") and err.count("\n") == 1


@on_posix
def test_ctrl_c_ends_it_with_130() -> None:
    process = start("bench", "--model", "tiny", "--device", "cpu", "--requests", "500")
    assert process.stderr is not None
    while b"warming up" not in process.stderr.readline():
        pass
    code, said = interrupted(process)
    assert code == 130 and said.endswith("paged-engine: interrupted\n")
