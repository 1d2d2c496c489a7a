"""What a check says to a reader, whatever the reader hands it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paged_engine.errors import PagedEngineError
from paged_engine.lessons import exercises
from paged_engine.lessons.exercises import NotYet, call, check, exercise, expect, results, yours


def _double(numbers: list[int]) -> list[int]:
    return [2 * n for n in numbers]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exercise "99.1": a function that doubles each number of a list."""
    monkeypatch.setattr(exercises, "_known", {})
    monkeypatch.setattr(exercises, "_results", {})

    @exercise("99.1", "every number is doubled")
    def test(double: Callable[[list[int]], list[int]]) -> None:
        given = [1, 5, 8]
        expect(call(double, given), _double(given), "double([1, 5, 8])", "multiply each")

    yield


def said(capsys: pytest.CaptureFixture[str], answer: Any, name: str = "99.1") -> str:
    check(name, answer)
    return capsys.readouterr().out.strip()


def test_a_right_answer_passes_and_is_told_what_it_showed(capsys: Any) -> None:
    assert said(capsys, _double) == "99.1 passed: every number is doubled"
    assert results() == {"99.1": "passed"}


def _empty(numbers):  # type: ignore[no-untyped-def]
    ...


def _documented(numbers):  # type: ignore[no-untyped-def]
    """Doubles."""
    ...


def _passing(numbers):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize("stub", [None, ..., _empty, _documented, _passing])
def test_a_stub_is_not_attempted(stub: Any, capsys: Any) -> None:
    assert said(capsys, stub) == "99.1 not attempted yet"
    assert results() == {"99.1": "not attempted"}


def test_the_lessons_own_solution_is_nobodys_attempt(capsys: Any) -> None:
    def double(numbers: list[int]) -> list[int]:
        return [2 * n for n in numbers]

    double.__module__ = "paged_engine.lessons.solutions.nb99"
    assert said(capsys, double) == "99.1 not attempted yet"


def test_a_class_with_a_stub_is_not_attempted() -> None:
    class Half:
        def __init__(self) -> None: ...
        def done(self) -> int:
            return 1

        def to_do(self) -> int: ...  # type: ignore[empty-body]

    class Whole:
        def __init__(self) -> None: ...
        def done(self) -> int:
            return 1

    assert exercises.is_stub(Half) and not exercises.is_stub(Whole)


def test_a_wrong_answer_is_told_input_expected_got_and_hint(capsys: Any) -> None:
    words = said(capsys, lambda numbers: [n + 1 for n in numbers])
    assert words == (
        "99.1 not yet. double([1, 5, 8]): expected [2, 10, 16], got [2, 6, 9]. Hint: multiply each."
    )


def test_a_wrong_type_is_named(capsys: Any) -> None:
    words = said(capsys, lambda numbers: sum(numbers))
    assert "expected a list, [2, 10, 16], got a int" in words


def test_nothing_returned_is_asked_about(capsys: Any) -> None:
    def forgets(numbers: list[int]) -> None:
        [2 * n for n in numbers]

    @exercise("99.2", "")
    def test(answer: Any) -> None:
        expect(answer([1]), [2], "double([1])")

    words = said(capsys, forgets, "99.2")
    assert "does every way through it return something?" in words


def test_an_exception_is_told_with_the_readers_line(capsys: Any) -> None:
    def raises(numbers: list[int]) -> list[int]:
        return [n / 0 for n in numbers]  # type: ignore[misc]

    words = said(capsys, raises)
    assert "It raised ZeroDivisionError: division by zero, in line" in words
    assert "return [n / 0 for n in numbers]" in words


def test_an_exception_of_a_library_is_told_with_the_readers_line(capsys: Any) -> None:
    def raises(numbers: list[int]) -> Any:
        return json.loads("{")

    words = said(capsys, raises)
    assert "JSONDecodeError" in words and words.endswith('of raises: return json.loads("{").')


def test_a_changed_argument_is_told(capsys: Any) -> None:
    def greedy(numbers: list[int]) -> list[int]:
        return [2 * numbers.pop(0) for _ in range(len(numbers))]

    words = said(capsys, greedy)
    assert "argument 1 left as it was, [1, 5, 8], got []" in words
    assert "work on a copy" in words


def test_what_is_no_function_is_named(capsys: Any) -> None:
    words = said(capsys, [2, 10, 16])
    assert "expected a function, got [2, 10, 16]. Hint: hand over its name" in words


def _for_ever(numbers: list[int]) -> list[int]:
    while True:
        numbers = numbers[:]


def _stubborn(numbers: list[int]) -> list[int]:
    while True:
        try:
            numbers = numbers[:]
        except Exception:  # swallows whatever it can
            continue


def _more_stubborn(numbers: list[int]) -> list[int]:
    count = 0
    while count < 2:
        try:
            while True:
                numbers = numbers[:]
        except BaseException:
            count += 1
    return numbers


@pytest.mark.parametrize("endless", [_for_ever, _stubborn, _more_stubborn])
def test_a_loop_without_end_is_ended(
    endless: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exercises, "TIME_LIMIT", 0.3)
    words = said(capsys, endless)
    assert words.startswith("99.1 not yet.")
    for _ in range(50):  # nothing comes after the end
        time.sleep(0.01)
    assert said(capsys, _double).startswith("99.1 passed")


def test_an_exercise_that_does_not_exist_is_an_error() -> None:
    for name in ("99.7", "nonsense", ""):
        with pytest.raises(PagedEngineError, match="there is no exercise"):
            check(name, _double)


def test_a_long_value_is_cut() -> None:
    assert len(str(NotYet(list(range(1000)), 1))) < 300


def test_yours_is_used_when_it_passed_and_the_lessons_own_until_then(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Solutions:
        @staticmethod
        def double(numbers: list[int]) -> list[int]:
            return _double(numbers)

    monkeypatch.setattr(exercises.importlib, "import_module", lambda name: Solutions)

    def double(numbers): ...  # type: ignore[no-untyped-def]

    check("99.1", double)
    assert yours("99.1", double) is Solutions.double
    assert "the lesson's own is used" in capsys.readouterr().out

    def double(numbers):  # type: ignore[no-untyped-def,no-redef]
        return [n + n for n in numbers]

    check("99.1", double)
    assert yours("99.1", double) is double
    with pytest.raises(PagedEngineError, match="keep the name"):
        check("99.1", None)
        yours("99.1", lambda: 1)
