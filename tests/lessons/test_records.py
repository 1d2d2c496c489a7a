"""Results of checks as JSON: what is in the file, and how a file collects a series."""

from __future__ import annotations

import importlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from paged_engine.errors import PagedEngineError
from paged_engine.lessons import check, exercises, export_results, records
from paged_engine.lessons.bug_hunts import accuse, find_hunt
from paged_engine.lessons.checks import nb05
from paged_engine.lessons.exercises import exercise, expect, yours


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has just started, with two exercises."""
    for name in ("_known", "_results"):
        monkeypatch.setattr(exercises, name, {})
    monkeypatch.setattr(records, "_records", {})
    for name in ("98.1", "99.1"):
        exercise(name, "it is two")(lambda answer: expect(answer, 2))
    importlib.reload(nb05)  # whoever imported it first had its own list of exercises


def written(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def result(file: Path, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in written(file)["results"] if entry["exercise"] == name]
    return found


def test_the_file_says_what_it_is_and_what_ran(tmp_path: Path, capsys: Any) -> None:
    check("99.1", 2)
    assert export_results(tmp_path / "r.json") == tmp_path / "r.json"
    assert capsys.readouterr().out.endswith("1 of 1 passed: written to r.json\n")
    content = written(tmp_path / "r.json")
    assert (content["schema"], content["version"]) == ("paged_engine.results", 1)
    assert set(content) == {"schema", "version", "exported_at", "versions", "results"}
    assert set(content["versions"]) == {"paged_engine", "python", "torch", "transformers"}
    assert all(content["versions"].values())
    at = datetime.fromisoformat(content["exported_at"])
    assert at.utcoffset() == timedelta(0)


def test_an_attempt_is_counted_and_a_stub_is_none(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    check("99.1", None)
    export_results(file)
    assert result(file, "99.1") == {
        "exercise": "99.1",
        "notebook": "99",
        "kind": "exercise",
        "status": "not attempted",
        "attempts": 0,
        "first_attempt": None,
        "last_attempt": None,
        "first_passed": None,
        "said": "99.1 not attempted yet",
    }
    check("99.1", 3)
    export_results(file)
    tried = result(file, "99.1")
    assert (tried["status"], tried["attempts"], tried["first_passed"]) == ("not yet", 1, None)
    assert "expected 2, got 3" in tried["said"]
    check("99.1", 2)
    check("99.1", 2)
    export_results(file)
    done = result(file, "99.1")
    assert (done["status"], done["attempts"]) == ("passed", 3)
    assert done["first_attempt"] <= done["first_passed"] <= done["last_attempt"]


def test_a_passing_answer_that_is_broken_again_shows_both(tmp_path: Path) -> None:
    check("99.1", 2)
    check("99.1", 3)
    export_results(tmp_path / "r.json")
    found = result(tmp_path / "r.json", "99.1")
    assert found["status"] == "not yet" and found["first_passed"]


def test_a_bug_hunt_is_there_too(tmp_path: Path) -> None:
    accuse("05", None)
    accuse("05", find_hunt("05").guilty)
    accuse("09b", "Z")
    export_results(tmp_path / "r.json")
    solved, wrong = (result(tmp_path / "r.json", name) for name in ("05.hunt", "09b.hunt"))
    assert (solved["kind"], solved["notebook"], solved["status"]) == ("hunt", "05", "passed")
    assert (wrong["notebook"], wrong["status"], wrong["attempts"]) == ("09", "not yet", 1)


def test_what_yours_gave_is_no_attempt(tmp_path: Path) -> None:
    """A cell that is run again after `yours` must not wipe out what the reader tried."""

    def schedule(self):  # type: ignore[no-untyped-def]
        return 3

    check("05.1", schedule)
    check("05.1", yours("05.1", schedule))
    export_results(tmp_path / "r.json")
    assert result(tmp_path / "r.json", "05.1")["status"] == "not yet"
    assert result(tmp_path / "r.json", "05.1")["attempts"] == 1


def test_one_file_collects_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each notebook has a kernel of its own, and a later day begins with stubs."""
    file = tmp_path / "r.json"
    check("99.1", 2)
    export_results(file)
    monkeypatch.setattr(records, "_records", {})
    check("98.1", 3)
    check("99.1", None)
    export_results(file)
    export_results(file)
    assert [entry["exercise"] for entry in written(file)["results"]] == ["98.1", "99.1"]
    assert result(file, "99.1")["status"] == "passed"
    assert result(file, "98.1")["attempts"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("my thesis", "holds no results"),
        ("[1, 2]", "holds no results"),
        ('{"schema": "x", "version": 1}', "holds no results"),
        ('{"schema": "paged_engine.results", "version": 2, "results": []}', "version 2"),
    ],
)
def test_another_file_is_never_overwritten(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(PagedEngineError, match=says):
        export_results(file)
    assert file.read_text() == text
