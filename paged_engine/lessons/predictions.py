"""Predictions: an optional answer before the result is in, and the reason afterwards.

steps = predict("how many steps?", None)      # your answer in place of None
...
steps.compare(33, "every step serves everybody")
"""

from __future__ import annotations

from typing import Any

from paged_engine.errors import PagedEngineError


class Prediction:
    """One guess.

    Attributes:
        question: What was asked.
        answer: The reader's; None: there is none.
    """

    def __init__(self, question: str, answer: Any) -> None:
        self.question = question
        self.answer = answer

    def compare(self, actual: Any, reason: str, *, within: float = 0.0) -> None:
        """Print how the guess stands to what came out, and why it came out so.

        Args:
            actual: What came out.
            reason: Why; told to those who were right as well.
            within: How far off a number may be and still count as right, as a share of `actual`.
        """
        if self.answer is None:
            verdict = f"It is {_shown(actual)}."
        elif _agrees(self.answer, actual, within):
            verdict = f"You said {_shown(self.answer)}, and it is {_shown(actual)}."
        else:
            verdict = f"You said {_shown(self.answer)}; it is {_shown(actual)}."
        print(f"{verdict} {reason}")

    def __repr__(self) -> str:
        return f"Prediction({self.question!r}, {self.answer!r})"


def predict(question: str, answer: Any = None) -> Prediction:
    """Keep a guess until the result is in; None is no guess, and nobody minds.

    Raises:
        PagedEngineError: The question is missing.
    """
    if not isinstance(question, str) or not question:
        raise PagedEngineError(
            f"predict got {question!r}; expected the question first, then your answer or None"
        )
    prediction = Prediction(question, answer)
    _made[question] = prediction
    return prediction


def predictions() -> dict[str, Any]:
    """Every question so far with its answer."""
    return {question: made.answer for question, made in _made.items()}


_made: dict[str, Prediction] = {}


def _agrees(answer: Any, actual: Any, within: float) -> bool:
    numbers = (int, float)
    if isinstance(answer, numbers) and isinstance(actual, numbers):
        return bool(abs(answer - actual) <= within * abs(actual))
    if isinstance(answer, str) and isinstance(actual, str):
        return answer.strip().lower() == actual.strip().lower()
    if isinstance(answer, (list, tuple)) and isinstance(actual, (list, tuple)):
        return list(answer) == list(actual)
    return bool(answer == actual)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
