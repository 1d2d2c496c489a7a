"""The notebooks without their solutions, for a class: `python -m paged_engine.lessons.student`.

Of each exercise the task, the stub, the check and the hint stay; of each bug hunt everything but
the answer.  Code is left as it is, so the notebooks run as before: stubs say `not attempted`.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged_engine.errors import PagedEngineError
from paged_engine.lessons.folders import ready_folder

KIND = "student"
INSTEAD = "`accuse` says whether you are right, and why."  # where a hunt's answer stood
_FOLDED = re.compile(
    r"<details>\s*<summary>(?:Solution|Answer)</summary>.*?</details>\n*", re.DOTALL
)
_READERS = ("exercise:", "check:", "hunt:")  # tags of cells whose outputs are the reader's to make
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")


def without_solutions(notebook: dict[str, Any], keep_outputs: bool = True) -> dict[str, Any]:
    """A notebook, as JSON has it, without solutions and answers.

    Args:
        notebook: It is changed.
        keep_outputs: Whether cells that are not the reader's to do keep what they showed.
    """
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            before = "".join(cell["source"])
            after = _FOLDED.sub("", before)
            if after != before:
                cell["source"] = (after.strip() or INSTEAD).splitlines(keepends=True)
        elif cell["cell_type"] == "code":
            tags = cell["metadata"].get("tags", [])
            if not keep_outputs or any(tag.startswith(_READERS) for tag in tags):
                cell["outputs"], cell["execution_count"] = [], None
    if not keep_outputs:
        notebook["metadata"].pop("widgets", None)
    return notebook


def write_student(root: Path, to: Path, force: bool = False, keep_outputs: bool = True) -> int:
    """Write all notebooks without solutions, with the pages and pictures that they link to.

    Args:
        root: The repository.
        to: The folder to write.
        force: Whether it may be written anew: somebody may have worked in it.
        keep_outputs: See `without_solutions`.

    Returns:
        How many notebooks there are.

    Raises:
        PagedEngineError: There are no notebooks, or `to` holds something.
    """
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise PagedEngineError(f"there are no notebooks in {root}; name the repository")
    ready_folder(to, KIND, replace=force)
    texts: dict[str, str] = {}
    for file in notebooks:
        notebook = without_solutions(json.loads(file.read_text(encoding="utf-8")), keep_outputs)
        texts[f"notebooks/{file.name}"] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    for file in sorted((root / "notebooks").glob("*.md")):
        texts[f"notebooks/{file.name}"] = file.read_text(encoding="utf-8")
    (to / "notebooks").mkdir()
    for name, text in texts.items():
        (to / name).write_text(text, encoding="utf-8")
    for linked in sorted(set().union(*(_links(text, name) for name, text in texts.items()))):
        _copy(root / linked, to / linked)
    return len(notebooks)


def _links(text: str, name: str) -> set[str]:
    """What a page links to in `assets`, seen from the repository."""
    # in a notebook's JSON a quotation mark has a backslash before it
    found = (a or b for a, b in _LINK.findall(text.replace('\\"', '"')))
    targets = {
        posixpath.normpath(posixpath.join(posixpath.dirname(name), target.partition("#")[0]))
        for target in found
        if ":" not in target
    }
    return {target for target in targets if target.startswith("assets/")}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them, and say how many; 1 where that could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m paged_engine.lessons.student",
        description="Write the notebooks without solutions.",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    parser.add_argument("--to", type=Path, default=Path("student"), help="the folder to write")
    parser.add_argument("--force", action="store_true", help="write it anew if it is there")
    parser.add_argument("--no-outputs", action="store_true", help="clear every cell's output")
    options = parser.parse_args(arguments)
    try:
        count = write_student(options.root, options.to, options.force, not options.no_outputs)
    except PagedEngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} notebooks without solutions: {options.to / 'notebooks'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
