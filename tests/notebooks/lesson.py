"""A notebook of the series as the tests see it: its cells, its exercises, what is known of it."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


@dataclass
class Cell:
    """One cell.

    Attributes:
        number: Its place in the notebook.
        kind: "code" or "markdown".
        source: Its text.
        tags: Its tags.
        outputs: What is saved of its outputs.
    """

    number: int
    kind: str
    source: str
    tags: list[str]
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def tagged(self, name: str) -> str | None:
        """ "05.1" of the tag "exercise:05.1", asked for "exercise"."""
        for tag in self.tags:
            if tag.startswith(f"{name}:"):
                return tag.partition(":")[2]
        return None


def cells_of(path: Path) -> list[Cell]:
    """Every cell, in order."""
    return [
        Cell(
            number,
            cell["cell_type"],
            "".join(cell["source"]),
            cell["metadata"].get("tags", []),
            cell.get("outputs", []),
        )
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"])
    ]


def solutions_of(cells: list[Cell]) -> dict[str, str]:
    """The code of each solution, by the name of its exercise."""
    found = {}
    for cell in cells:
        name = cell.tagged("solution")
        if name is not None:
            (code,) = SOLUTION.findall(cell.source)
            found[name] = code
    return found


def facts_of(path: Path) -> ModuleType | None:
    """What `facts/nbNN.py` says of a notebook; None where there is none."""
    file = Path(__file__).parent / "facts" / f"nb{path.stem[:2]}.py"
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"facts_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
