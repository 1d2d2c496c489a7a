"""The check at the top of the first notebook: silent where all is well, helpful where it is not."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from paged_engine import environment
from paged_engine.environment import ENGINE, FETCH, NOTEBOOKS, SET_UP, Finding, check, findings
from paged_engine.models.default_model import DEFAULT_SOURCE

REPO = Path(__file__).resolve().parents[2]


def problems() -> dict[str, Finding]:
    return {finding.name: finding for finding in findings() if not finding.is_ok}


def oldest(requirements: list[str]) -> dict[str, str]:
    """{"torch": "2.6"} from ["torch>=2.6"]."""
    pairs = (line.split(",")[0].split(">=") for line in requirements)
    return dict((name, version) for name, version in pairs)


def test_what_is_looked_for_is_what_the_project_asks_for() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert oldest(project["dependencies"]) == ENGINE
    assert oldest(project["optional-dependencies"]["notebooks"]) == NOTEBOOKS
    wanted = ".".join(map(str, environment.OLDEST_PYTHON))
    assert project["requires-python"] == f">={wanted}"


def test_where_all_is_well_no_version_and_no_folder_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGED_ENGINE_MODEL", "mine")
    assert check() is None
    names = ["python", *ENGINE, *NOTEBOOKS, "model"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:-2]] == [[name, "ok"] for name in names]
    assert lines[-2:] == ["", "All is here."]


def test_a_package_that_is_missing_or_old_or_broken_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_version, real_import = importlib.metadata.version, importlib.import_module

    def version(name: str) -> str:
        if name == "gguf":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.9.9+cpu" if name == "transformers" else real_version(name)

    def import_module(name: str) -> object:
        if name == "matplotlib":
            raise ImportError("DLL load failed\nwhile importing _path")
        return real_import(name)

    monkeypatch.setenv("PAGED_ENGINE_MODEL", "mine")
    monkeypatch.setattr(environment, "version", version)
    monkeypatch.setattr(importlib, "import_module", import_module)
    found = problems()
    assert set(found) == {"gguf", "transformers", "matplotlib"}
    assert "not in the environment of this kernel" in found["gguf"].problem
    assert found["transformers"].problem == "version 4.9.9+cpu, and 5.0 or newer is needed"
    assert found["matplotlib"].problem.endswith(
        "(ImportError: DLL load failed while importing _path)"
    )
    assert {finding.remedy for finding in found.values()} == {SET_UP}
    check()
    said = capsys.readouterr().out
    assert said.count("NOT OK") == 4 and said.count("do this: ") == 3
    assert said.endswith("Mend the 3 marked NOT OK, then run this again.\n")


def test_an_old_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGED_ENGINE_MODEL", "mine")
    monkeypatch.setattr(environment, "OLDEST_PYTHON", (99, 1))
    assert "99.1 is needed" in problems()["python"].problem


def test_a_model_that_is_not_here_yet_is_told_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGED_ENGINE_MODEL", raising=False)
    monkeypatch.delenv("PAGED_ENGINE_SHARED_CACHE", raising=False)
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "not" / "made" / "yet"))
    (finding,) = problems().values()
    assert finding == Finding("model", "not here yet; a fetch of 93 MB, once", FETCH)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(environment, "_free_bytes", lambda folder: 5_000_000)
    (finding,) = problems().values()
    needed = DEFAULT_SOURCE.disk_bytes // 1_000_000
    assert f"has 5 MB free of {needed}" in finding.problem
    assert "PAGED_ENGINE_CACHE" in finding.remedy


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("5.0rc1", (5, 0)), ("0.9", (0, 9)), ("1.dev3", (1,))],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert environment._numbers(text) == numbers
