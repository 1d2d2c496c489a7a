"""Is everything here that the notebooks need?  One line for each thing, and what to do if not.

    from paged_engine.environment import check
    check()

What is fine reads the same on every machine; versions and folders are told only where something
is wrong.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST_PYTHON = (3, 11)
# What is imported, and the oldest version that will do: those of pyproject.toml.
ENGINE = {
    "torch": "2.6",
    "transformers": "5.0",
    "safetensors": "0.4.3",
    "gguf": "0.10",
    "filelock": "3.13",
    "tqdm": "4.66",
    "numpy": "1.26",
}
NOTEBOOKS = {
    "jupyterlab": "4.3",
    "ipykernel": "7.0",
    "ipywidgets": "8.1",
    "anywidget": "0.9.13",
    "psutil": "6.0",
    "matplotlib": "3.9",
    "nbconvert": "7.16",
}
SET_UP = "in a terminal, in the repository: python run.py setup; then restart this kernel"
FETCH = "in a terminal: python -m paged_engine.models.default_model"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `problem` and `remedy` are empty where it is fine."""

    name: str
    problem: str = ""
    remedy: str = ""

    @property
    def is_ok(self) -> bool:
        return not self.problem


def findings() -> Iterator[Finding]:
    """Look at everything, one thing after the other."""
    yield _python()
    for name, oldest in (ENGINE | NOTEBOOKS).items():
        yield _package(name, oldest)
    yield _model()


def check() -> None:
    """Print one line for each thing, and at the end whether you can go on."""
    found = list(findings())
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.name:<{width}}  {'ok' if finding.is_ok else 'NOT OK: ' + finding.problem}")
        if finding.remedy:
            print(f"{'':<{width}}  do this: {finding.remedy}")
    wrong = sum(not finding.is_ok for finding in found)
    print()
    print("All is here." if not wrong else f"Mend the {wrong} marked NOT OK, then run this again.")


def _python() -> Finding:
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("python")
    needed = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        "python",
        f"this is {platform.python_version()}, and {needed} is needed",
        f"install Python {needed} or newer, then {SET_UP}",
    )


def _package(name: str, oldest: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, f"not in the environment of this kernel ({sys.prefix})", SET_UP)
    if _numbers(found) < _numbers(oldest):
        return Finding(name, f"version {found}, and {oldest} or newer is needed", SET_UP)
    try:
        importlib.import_module(name)
    except Exception as error:  # a half-installed package raises anything
        said = " ".join(str(error).split())[:160]
        return Finding(name, f"cannot be imported ({type(error).__name__}: {said})", SET_UP)
    return Finding(name)


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu is (2, 13, 0)."""
    numbers = []
    for piece in text.split("+")[0].split("."):
        digits = piece[: len(piece) - len(piece.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _model() -> Finding:
    """Only looks: the model is fetched when it is first used."""
    from paged_engine.models.cache import cache_folder, problem_with, shared_cache_folders
    from paged_engine.models.default_model import DEFAULT_MODEL_NAME, DEFAULT_SOURCE

    chosen = os.environ.get("PAGED_ENGINE_MODEL")
    if chosen:
        return Finding("model")  # the user's own: it is looked at when it is loaded
    folder = cache_folder()
    roots = [folder, *shared_cache_folders()]
    if any(problem_with(root / DEFAULT_MODEL_NAME) is None for root in roots):
        return Finding("model")
    needed, free = DEFAULT_SOURCE.disk_bytes, _free_bytes(folder)
    if free < needed:
        return Finding(
            "model",
            f"not here yet, and {folder} has {free / 1e6:,.0f} MB free of {needed / 1e6:,.0f}",
            "make room, or set PAGED_ENGINE_CACHE to a folder that has it",
        )
    megabytes = DEFAULT_SOURCE.download_bytes / 1e6
    return Finding("model", f"not here yet; a fetch of {megabytes:.0f} MB, once", FETCH)


def _free_bytes(folder: Path) -> int:
    """Free room where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
