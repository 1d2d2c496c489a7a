"""Exercises: what a check is, and how it tells what it found.

    check("05.2", schedule)

prints one of

    05.2 not attempted yet
    05.2 passed: ...
    05.2 not yet. With ...: expected ..., got ... Hint: ...

and never raises, so that a notebook with untouched stubs runs to its end.  The checks themselves
are in `lessons/checks`, a module a notebook.
"""

from __future__ import annotations

import copy
import dis
import importlib
import importlib.util
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from paged_engine.errors import PagedEngineError
from paged_engine.lessons import records
from paged_engine.lessons.deadline import OutOfTime, deadline

TIME_LIMIT = 10.0  # seconds for one check

_LONGEST = 160  # characters of a value that is printed


class NotYet(Exception):
    """A check found that the answer is not right.

    Args:
        expected, got: In words or values.
        when: For what input.
        hint: The next thing to try.
    """

    def __init__(self, expected: Any, got: Any, when: str = "", hint: str = "") -> None:
        super().__init__(expected, got)
        self.expected, self.got, self.when, self.hint = expected, got, when, hint

    def __str__(self) -> str:
        where = f"{self.when}: " if self.when else ""
        text = f"{where}expected {_shown(self.expected)}, got {_shown(self.got)}."
        return f"{text} Hint: {self.hint}" if self.hint else text


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: Notebook and number, as "05.2".
        test: Raises :class:`NotYet`, or returns.  It is given what the reader wrote.
        passed: What a right answer has shown, in a sentence.
    """

    name: str
    test: Callable[..., None]
    passed: str


_known: dict[str, Exercise] = {}
_results: dict[str, str] = {}


def exercise(name: str, passed: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the check of an exercise."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        _known[name] = Exercise(name, test, passed)
        return test

    return register


def check(name: str, *answers: Any) -> None:
    """Test what the reader wrote and print how it stands.

    Args:
        name: The exercise, as "05.2".
        answers: What it asks for: a function, a class, a value.

    Raises:
        PagedEngineError: There is no such exercise.
    """
    found = find_exercise(name)
    if any(is_stub(answer) for answer in answers) or not answers:
        return tell(name, "not attempted", f"{name} not attempted yet")
    try:
        with deadline(TIME_LIMIT):
            found.test(*answers)
    except NotYet as problem:
        return tell(name, "not yet", f"{name} not yet. {_sentence(str(problem))}")
    except OutOfTime:
        said = f"It still ran after {TIME_LIMIT:.0f} seconds: does a loop ever end?"
        return tell(name, "not yet", f"{name} not yet. {said}")
    except Exception as problem:
        return tell(name, "not yet", f"{name} not yet. {_raised(problem)}")
    return tell(name, "passed", f"{name} passed: {found.passed}")


def yours(name: str, answer: Any) -> Any:
    """The reader's answer if it passes, else the lesson's own, so that the notebook goes on.

    Args:
        name: The exercise, as "05.2".
        answer: What the reader wrote; the lesson's own goes by the same name.

    Raises:
        PagedEngineError: There is no solution of that name.
    """
    if _results.get(name) == "passed":
        print(f"{name}: from here on yours is used.")
        return answer
    module = importlib.import_module(f"{__package__}.solutions.nb{name.partition('.')[0]}")
    solution = getattr(module, getattr(answer, "__name__", ""), None)
    if solution is None:
        raise PagedEngineError(
            f"exercise {name} has no solution {answer!r}; keep the name that the stub has"
        )
    print(f"{name}: yours does not pass yet, so the lesson's own is used from here on.")
    return solution


def find_exercise(name: str) -> Exercise:
    """The exercise of that name.

    Raises:
        PagedEngineError: There is none.
    """
    notebook = str(name).partition(".")[0]
    module = f"{__package__}.checks.nb{notebook}"
    if name not in _known and notebook.isdigit() and importlib.util.find_spec(module):
        importlib.import_module(module)
    if name not in _known:
        raise PagedEngineError(
            f"there is no exercise {name!r}; expected notebook and number, as in "
            f'check("05.2", schedule)'
        )
    return _known[name]


def results() -> dict[str, str]:
    """How each exercise that was checked stands: "passed", "not yet" or "not attempted"."""
    return dict(_results)


# ------------------------------------------------------------------ for those who write checks


def expect(got: Any, expected: Any, when: str = "", hint: str = "") -> None:
    """Hold a result against what is right, its type included.

    Raises:
        NotYet: They differ.
    """
    if got is None and expected is not None:
        raise NotYet(expected, "None", when, hint or "does every way through it return something?")
    if type(got) is not type(expected) and not isinstance(got, type(expected)):
        kind = type(got).__name__
        raise NotYet(f"a {type(expected).__name__}, {_shown(expected)}", f"a {kind}", when, hint)
    if got != expected:
        raise NotYet(expected, got, when, hint)


def call(function: Callable[..., Any], *arguments: Any, when: str = "", hint: str = "") -> Any:
    """What a reader's function returns, which must leave its arguments as they are.

    Raises:
        NotYet: It changed one of them, or is no function.
    """
    if not callable(function):
        raise NotYet("a function", function, hint="hand over its name, without brackets")
    before = copy.deepcopy(arguments)
    result = function(*arguments)
    for position, (old, new) in enumerate(zip(before, arguments, strict=True), 1):
        if old != new:
            raise NotYet(
                f"argument {position} left as it was, {_shown(old)}", new, when,
                hint or "work on a copy: whoever called you still needs it",
            )  # fmt: skip
    return result


def is_stub(answer: Any) -> bool:
    """Whether the reader has written nothing: None, `...`, a function or methods of only `...`.

    Or what `yours` gave them in its place: a cell that is run again must not call that passed.
    """
    if str(getattr(answer, "__module__", "")).startswith(f"{__package__}.solutions"):
        return True
    if answer is None or answer is ...:
        return True
    if isinstance(answer, FunctionType):
        return _does_nothing(answer)
    if isinstance(answer, type):
        written = [f for f in vars(answer).values() if isinstance(f, FunctionType)]
        return bool(written) and any(_is_marked(f) for f in written)
    return False


# Where code lies that no reader wrote: this package, Python's own, what is installed.
_NOT_THE_READERS = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
    "<frozen",
)
_NOTHING = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "COPY_FREE_VARS"}


def _does_nothing(function: FunctionType) -> bool:
    """Whether its body is a docstring, `...` or `return None` at most."""
    instructions = list(dis.get_instructions(function))
    values = [i.argval for i in instructions if i.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {i.opname for i in instructions} <= _NOTHING and set(values) <= {None, ...}


def _is_marked(function: FunctionType) -> bool:
    """Of a class: a method of only `...` is one that is still to be written."""
    return function.__name__ != "__init__" and _does_nothing(function)


def tell(name: str, result: str, words: str) -> None:
    """Keep how an exercise stands, and print it."""
    _results[name] = result
    records.keep(name, result, words)
    print(words)


def _raised(problem: Exception) -> str:
    """What the reader's code raised, and in which of their lines."""
    said = f"It raised {type(problem).__name__}: {problem}"
    for frame, number in reversed(list(traceback.walk_tb(problem.__traceback__))):
        code = frame.f_code
        if not code.co_filename.startswith(_NOT_THE_READERS):
            text = linecache.getline(code.co_filename, number).strip()
            said += f", in line {number} of {code.co_name}" + (f": {text}" if text else "")
            break
    return _sentence(said)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
