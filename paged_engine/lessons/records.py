"""What `check` and `accuse` found, kept with times, and written as JSON for whoever teaches.

    export_results("results.json")

The file, version 1 of its schema:

    schema        "paged_engine.results"
    version       1
    exported_at   when it was written; all times are UTC, ISO 8601, to the second
    versions      of paged_engine, python, torch and transformers ("" where not installed)
    results       a list, in the order of the exercises' names; each has
      exercise        "05.1"; of a bug hunt "05.hunt"
      notebook        "05"
      kind            "exercise" or "hunt"
      status          "passed", "not yet" or "not attempted": of the last attempt
      attempts        how often it was checked with an answer
      first_attempt   when that was first, or null
      last_attempt    when it was last, or null
      first_passed    when it passed first, or null
      said            the last words about it

A file that is there is added to: an exercise that was not attempted since the kernel started keeps
what the file says of it, so one file can collect a whole series.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from paged_engine.errors import PagedEngineError

SCHEMA = "paged_engine.results"
VERSION = 1


@dataclass
class Record:
    """How one exercise stands; the attributes are those of the file."""

    exercise: str
    notebook: str
    kind: str
    status: str = "not attempted"
    attempts: int = 0
    first_attempt: str | None = None
    last_attempt: str | None = None
    first_passed: str | None = None
    said: str = ""


_records: dict[str, Record] = {}


def keep(name: str, status: str, said: str) -> None:
    """Note what a check found."""
    notebook, _, rest = name.partition(".")
    kind = "hunt" if rest == "hunt" else "exercise"
    record = _records.setdefault(name, Record(name, re.sub(r"\D", "", notebook), kind))
    if status == "not attempted" and record.attempts:
        return  # a cell run again with what `yours` gave: the reader's own answer counts
    record.status, record.said = status, said
    if status != "not attempted":
        record.last_attempt = _now()
        record.first_attempt = record.first_attempt or record.last_attempt
        record.attempts += 1
        if status == "passed":
            record.first_passed = record.first_passed or record.last_attempt


def export_results(path: str | Path) -> Path:
    """Write how the exercises stand as JSON; see this module for what is in it.

    Args:
        path: The file.  One that this function wrote before is added to.

    Returns:
        The file's path.

    Raises:
        PagedEngineError: The file is there and is something else.
    """
    file = Path(path)
    found = {entry["exercise"]: entry for entry in read_results(file)} if file.exists() else {}
    for record in _records.values():
        if record.attempts or record.exercise not in found:
            found[record.exercise] = asdict(record)
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        "exported_at": _now(),
        "versions": {
            "paged_engine": _version("paged_engine"),
            "python": platform.python_version(),
            "torch": _version("torch"),
            "transformers": _version("transformers"),
        },
        "results": [found[name] for name in sorted(found)],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")
    passed = sum(entry["status"] == "passed" for entry in found.values())
    print(f"{passed} of {len(found)} passed: written to {file.name}")
    return file


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The results in a file that `export_results` wrote.

    Raises:
        PagedEngineError: It is no such file, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = (content["schema"], content["version"]) == (SCHEMA, VERSION)
        results: list[dict[str, Any]] = content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PagedEngineError(
            f"{path} holds no results of exercises ({type(error).__name__}); expected a file that "
            "export_results wrote, or a name that is free"
        ) from error
    if not known:
        raise PagedEngineError(
            f"{path} is {content['schema']!r}, version {content['version']!r}; expected "
            f"{SCHEMA!r}, version {VERSION}"
        )
    return results


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
