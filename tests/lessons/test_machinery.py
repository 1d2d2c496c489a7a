"""Predictions, classes that grow, bug hunts, charts, baselines."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.block_pool import BlockPool
from paged_engine.errors import InvalidRequestError, PagedEngineError
from paged_engine.lessons import (
    accuse,
    add_to_class,
    bug,
    cached_generate,
    chart,
    naive_generate,
    predict,
    predictions,
    results,
    show_diff,
    static_generate,
    suspects,
)
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.models import tiny
from tests.notebooks.lesson import NOTEBOOKS

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33]]
LIMITS = [4, 9, 6, 3]


@pytest.mark.parametrize(
    ("answer", "actual", "within", "words"),
    [
        (None, 1200, 0.0, "It is 1,200. Why."),
        (1200, 1200, 0.0, "You said 1,200, and it is 1,200. Why."),
        (1300, 1200, 0.0, "You said 1,300; it is 1,200. Why."),
        (1300, 1200, 0.1, "You said 1,300, and it is 1,200. Why."),
        (" Late ", "late", 0.0, "You said  Late , and it is late. Why."),
        ((1, 2), [1, 2], 0.0, "You said (1, 2), and it is [1, 2]. Why."),
        ("seven", 7, 0.0, "You said seven; it is 7. Why."),
    ],
)
def test_a_prediction_is_compared_with_its_reason(
    answer: Any, actual: Any, within: float, words: str, capsys: Any
) -> None:
    predict("how many?", answer).compare(actual, "Why.", within=within)
    assert capsys.readouterr().out.strip() == words
    assert predictions()["how many?"] == answer


def test_a_prediction_without_a_question_is_refused() -> None:
    with pytest.raises(PagedEngineError, match="expected the question first"):
        predict(12)  # type: ignore[arg-type]


def test_a_class_grows_and_the_package_adds_to_it(capsys: Any) -> None:
    class Pool:
        """Mine."""

    @add_to_class(Pool)
    def allocate(self: Any, n: int) -> list[int]:
        return list(range(n))

    assert Pool().allocate(2) == [0, 1]  # type: ignore[attr-defined]
    show_diff(Pool, BlockPool)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Both have: allocate."
    assert shown[1] == "paged_engine's BlockPool adds:"
    assert any(line.split()[0] == "free" for line in shown[2:])
    assert not any(line.split()[0].startswith("_") for line in shown[2:])
    with pytest.raises(TypeError, match="expected a class"):
        add_to_class("Pool")  # type: ignore[arg-type]


class Door:
    is_open = False


@contextmanager
def _opened() -> Iterator[None]:
    with replaced(Door, "is_open", True):
        yield


REASONS = {"A": "it was shut", "B": "nobody closed it"}


def test_a_bug_is_there_inside_and_gone_after(capsys: Any) -> None:
    hunt(Hunt("98", _opened, {"A": "the window", "B": "the door"}, "B", REASONS, "a house"))
    with bug("98"):
        assert Door.is_open
    with pytest.raises(RuntimeError), bug("98"):
        raise RuntimeError
    assert not Door.is_open
    suspects("98")
    for answer in (None, "a", "b ", "C"):
        accuse("98", answer)
    assert capsys.readouterr().out.splitlines() == [
        "A. the window",
        "B. the door",
        "98 bug hunt not attempted yet",
        "98 bug hunt: not A. it was shut",
        "98 bug hunt solved: B. nobody closed it (a house)",
        "98 bug hunt: expected one of A, B, got 'C'",
    ]
    assert results()["98.hunt"] == "not yet"


def test_a_hunt_without_a_reason_or_unknown_is_refused() -> None:
    with pytest.raises(PagedEngineError, match="each suspect needs a reason"):
        hunt(Hunt("97", _opened, {"A": "x", "B": "y"}, "A", {"A": "z"}))
    with pytest.raises(PagedEngineError, match="no bug hunt"):
        bug("96")


@pytest.mark.parametrize("name", [path.stem[:2] for path in NOTEBOOKS if path.stem[:2] > "00"])
def test_every_notebook_but_the_first_has_a_hunt_with_four_suspects(name: str) -> None:
    module = importlib.import_module(f"paged_engine.lessons.hunts.nb{name}")
    assert module is not None
    from paged_engine.lessons.bug_hunts import find_hunt

    assert len(find_hunt(name).suspects) >= 3
    assert find_hunt(name).source


def test_a_chart_of_counts_is_the_same_each_time_and_one_of_times_is_a_png() -> None:
    def draw(timed: bool) -> Any:
        figure, axes = chart("Each costs more", "token", "tokens computed", timed=timed)
        axes.plot([1, 2, 3], color=figure.look.colour(0))
        figure.tell("a line that rises from one to three")
        return figure._repr_mimebundle_()[0]

    first, second = draw(False), draw(False)
    assert first == second and set(first) == {"image/svg+xml", "image/png", "text/plain"}
    assert "<dc:date>" not in first["image/svg+xml"]
    assert first["text/plain"] == "a line that rises from one to three"
    figure, _ = chart("Shown twice", "token", "tokens computed")
    assert figure._repr_mimebundle_() == figure._repr_mimebundle_()
    assert set(draw(True)) == {"image/png", "text/plain"}


def test_the_baselines_agree_with_each_other_and_with_the_engine() -> None:
    model = tiny()
    engine = ContinuousEngine(model, config=EngineConfig(num_blocks=64, block_size=4))
    params = [SamplingParams(max_tokens=n) for n in LIMITS]
    wanted = [list(output.token_ids) for output in engine.generate(PROMPTS, params)]
    eos = engine.core.runner.eos_token_ids
    pairs = list(zip(PROMPTS, LIMITS, strict=True))
    assert [naive_generate(model, p, n, eos).token_ids[0] for p, n in pairs] == wanted
    assert [cached_generate(model, p, n, eos).token_ids[0] for p, n in pairs] == wanted
    for batch_size in (1, 2, 4, 9):
        assert static_generate(model, PROMPTS, LIMITS, batch_size, eos).token_ids == wanted


def test_the_baselines_count_their_work() -> None:
    model = tiny()
    naive = naive_generate(model, [5, 6, 7], 4)
    assert (naive.num_steps, naive.num_computed_tokens) == (4, 3 + 4 + 5 + 6)
    cached = cached_generate(model, [5, 6, 7], 4)
    assert (cached.num_steps, cached.num_computed_tokens) == (4, 3 + 1 + 1 + 1)
    static = static_generate(model, PROMPTS, LIMITS, 4)
    assert static.num_steps == 9 and static.num_slot_steps == 36
    assert static.num_wasted_slot_steps == 36 - sum(LIMITS)
    assert static.num_pad_tokens == 4 * 7 - sum(map(len, PROMPTS))


def test_the_baselines_stop_at_the_end_token() -> None:
    model = tiny()
    free = naive_generate(model, [5, 6, 7], 8).token_ids[0]
    stop = free[3]
    cut = free[: free.index(stop) + 1]
    assert naive_generate(model, [5, 6, 7], 8, {stop}).token_ids[0] == cut
    assert cached_generate(model, [5, 6, 7], 8, {stop}).token_ids[0] == cut


@pytest.mark.parametrize(
    ("prompts", "limits", "batch_size"),
    [([[]], [3], 1), ([[1]], [0], 1), ([[1]], [1, 2], 1), ([[1]], [1], 0)],
)
def test_what_no_baseline_can_do_is_refused(
    prompts: list[list[int]], limits: list[int], batch_size: int
) -> None:
    with pytest.raises(InvalidRequestError, match="expected"):
        static_generate(tiny(), prompts, limits, batch_size)
