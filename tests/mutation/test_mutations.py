"""Faults are planted in a copy of the package, and the test that is named must fail on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutation.mutations import EQUIVALENT, MUTATIONS, Equivalent, Mutation

REPO = Path(__file__).resolve().parents[2]
RecordProperty = Callable[[str, object], None]

pytestmark = pytest.mark.mutation

# Stands beside the copy's tests: no result counts that was got from another package than the copy.
GUARD = """
from pathlib import Path

import paged_engine

assert Path(paged_engine.__file__).is_relative_to(Path(__file__).parent), paged_engine.__file__
"""


def copy_to(folder: Path) -> None:
    """The package and the tests that it needs, to be changed and run."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "visualizer", "benchmark")
    shutil.copytree(REPO / "paged_engine", folder / "paged_engine", ignore=ignore)
    for name in ("tests/helpers", "tests/unit"):
        shutil.copytree(REPO / name, folder / name, ignore=ignore)
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(REPO / name, folder / name)
    (folder / "conftest.py").write_text(GUARD, encoding="utf-8")


def plant(folder: Path, change: Mutation | Equivalent) -> None:
    path = folder / "paged_engine" / change.file
    source = path.read_text(encoding="utf-8")
    assert source.count(change.old) == 1, (
        f"{change.file} has {change.old!r} {source.count(change.old)} times, expected once: the "
        f"code has changed, so bring tests/mutation/mutations.py up to date"
    )
    mutated = source.replace(change.old, change.new)
    compile(mutated, change.file, "exec")
    path.write_text(mutated, encoding="utf-8")


def run_tests(folder: Path, *node_ids: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter, in the copy, without any setting of the tests that are running."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    variables.pop("PYTHONPATH", None)
    variables |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to load than the tests to run
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-rfE", "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *options, *node_ids]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def test_every_named_test_passes_where_nothing_is_planted(tmp_path: Path) -> None:
    copy_to(tmp_path)
    node_ids = sorted({mutation.node_id for mutation in MUTATIONS})
    done = run_tests(tmp_path, *node_ids)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file[:-3]}: {m.name}")
def test_a_planted_fault_is_noticed(
    mutation: Mutation, tmp_path: Path, record_property: RecordProperty
) -> None:
    record_property("mutations planted", 1)
    copy_to(tmp_path)
    plant(tmp_path, mutation)
    done = run_tests(tmp_path, mutation.node_id)
    said = done.stdout + done.stderr
    assert done.returncode == 1, f"nobody noticed, or nothing ran:\n{said}"
    failed = re.findall(r"^FAILED (\S+?)(?:\[| |$)", done.stdout, re.MULTILINE)
    assert set(failed) == {mutation.node_id}, f"something else failed:\n{said}"
    assert not re.search(r"^ERROR |^E +(Import|Syntax|ModuleNotFound)Error", said, re.MULTILINE)
    record_property("mutations killed", 1)


@pytest.mark.parametrize("change", EQUIVALENT, ids=lambda e: f"{e.file[:-3]}: {e.old}")
def test_a_change_that_is_equivalent_can_still_be_planted(
    change: Equivalent, tmp_path: Path, record_property: RecordProperty
) -> None:
    """So that the list of excuses does not outlive its reasons."""
    assert change.reason
    copy_to(tmp_path)
    plant(tmp_path, change)
    module = change.file.removesuffix(".py")
    done = run_tests(tmp_path, f"tests/unit/test_{module}.py")
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("mutations equivalent", 1)


def test_numbers_of_mutations() -> None:
    """Every part has its share."""
    share = {"block_pool.py": 8, "scheduler.py": 10, "batch.py": 4, "sampler.py": 6}
    for file, least in share.items():
        assert sum(m.file == file for m in MUTATIONS) >= least
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 30
