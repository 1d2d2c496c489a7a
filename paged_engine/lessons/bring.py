"""What a reader wrote in an earlier notebook, brought into a later one.

    schedule = bring("05.1")

A notebook is a file, and the answer to an exercise is a cell of it.  So the cell is taken from
there and checked again.  Where it does not pass, or stands for nothing yet, the lesson's own comes
in its place: nobody is stuck.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

from paged_engine.errors import PagedEngineError
from paged_engine.lessons import exercises


def bring(name: str, folder: str | Path = ".") -> Any:
    """The reader's answer to an exercise of another notebook, else the lesson's own.

    Args:
        name: The exercise, as "05.1".
        folder: Where the notebooks lie; in a notebook that is the present one.

    Raises:
        PagedEngineError: There is no such exercise, or no later notebook builds on it.
    """
    exercises.find_exercise(name)
    if name not in _ANSWERS:
        known = ", ".join(_ANSWERS)
        raise PagedEngineError(f"nothing builds on exercise {name!r}; expected one of {known}")
    number = name.partition(".")[0]
    lesson = importlib.import_module(f"{__package__}.solutions.nb{number}")
    file = next(iter(sorted(Path(folder).glob(f"{number}_*.ipynb"))), None)
    answer, trouble = (None, "") if file is None else _written(file, name)
    if answer is not None and not trouble:
        print(f"{name} {answer.__name__}: yours")
        return answer
    wanted = _ANSWERS[name]
    print(f"{name} {wanted}: the lesson's own{f', for {trouble}' if trouble else ''}")
    return getattr(lesson, wanted)


# What an exercise is called by; the notebooks that are brought from are few.
_ANSWERS = {
    "04.1": "set_status",
    "04.2": "append_token",
    "05.1": "schedule",
    "05.2": "update",
    "06.1": "BlockPool",
    "06.2": "BlockTable",
    "07.1": "slot_mapping",
    "07.3": "online_attention",
}


def _written(file: Path, name: str) -> tuple[Any, str]:
    """What the cell of that exercise defines, and what is wrong with it, if something is."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    own = [c for c in code if f"exercise:{name}" in c["metadata"].get("tags", [])]
    if not own:
        return None, ""
    space: dict[str, Any] = {"__name__": file.stem}
    try:
        exec(_imports(["".join(cell["source"]) for cell in code]), space)
        exec(compile("".join(own[0]["source"]), file.name, "exec"), space)
    except Exception as problem:
        return None, f"its cell raises {type(problem).__name__} on its own: {problem}"
    answer = space.get(_ANSWERS[name])
    if answer is None or exercises.is_stub(answer):
        return None, ""
    return answer, "" if _passes(name, answer) else f"yours in {file.name} does not pass its check"


def _imports(sources: list[str]) -> Any:
    """The imports of all cells, which an answer may count on."""
    found: list[ast.stmt] = []
    for source in sources:
        with contextlib.suppress(SyntaxError):  # a cell that is half written
            found += [
                n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))
            ]
    return compile(ast.Module(found, []), "<imports>", "exec")


def _passes(name: str, answer: Any) -> bool:
    with contextlib.redirect_stdout(io.StringIO()):
        exercises.check(name, answer)
    return exercises.results().get(name) == "passed"
