"""The trial of ways to multiply, with a clock that says what each of them takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from paged_engine.kernels.library import PRODUCTS, load_kernels
from paged_engine.models import product_trial
from paged_engine.models.packed_linear import ways_to_multiply
from paged_engine.models.product_trial import NUM_TOKENS, TRIES, Linear, Pack, fastest_way


class Race:
    """Ways that take the seconds they are told to, for each of `NUM_TOKENS`."""

    def __init__(self, **seconds: tuple[float, float, float]) -> None:
        self.calls: list[tuple[str, int]] = []
        self.now = 0.0
        self.disturbed: set[int] = set()  # calls that take long, by their number
        self.ways: Mapping[str, Pack] = {name: self._pack(name, seconds[name]) for name in seconds}

    def _pack(self, name: str, seconds: tuple[float, float, float]) -> Pack:
        def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
            def multiply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
                self.calls.append((name, len(x)))
                self.now += seconds[NUM_TOKENS.index(len(x))]
                if len(self.calls) - 1 in self.disturbed:
                    self.now += 50
                return x

            return multiply

        return pack

    def winner(self, folder: Path, dtype: torch.dtype = torch.float32) -> str:
        return fastest_way(self.ways, dtype, folder, clock=lambda: self.now)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_trial, "WEIGHTS", (1, 4, 2))


def test_the_fastest_wins_and_all_take_turns(tmp_path: Path) -> None:
    race = Race(a=(2, 2, 2), b=(1, 1, 1), c=(2, 1, 2))
    assert race.winner(tmp_path) == "b"
    turns = [(name, count) for count in NUM_TOKENS for _ in range(TRIES) for name in "abc"]
    assert race.calls == turns


def test_every_number_of_tokens_counts_by_its_ratio(tmp_path: Path) -> None:
    # a prompt takes a hundred times as long as a token, and weighs no more
    assert Race(a=(1, 1, 100), b=(0.5, 1, 150)).winner(tmp_path / "1") == "b"
    assert Race(a=(1, 1, 100), b=(0.9, 1, 250)).winner(tmp_path / "2") == "a"


def test_a_neighbour_who_disturbs_some_turns_changes_nothing(tmp_path: Path) -> None:
    race = Race(a=(1, 1, 1), b=(1.1, 1.1, 1.1))
    race.disturbed = set(range(0, 2 * TRIES * len(NUM_TOKENS), 2)) - {4, 14, 24}  # of a, all but 3
    assert race.winner(tmp_path) == "a"


def test_a_hopeless_way_is_not_tried_with_more_tokens(tmp_path: Path) -> None:
    race = Race(a=(1, 1, 1), b=(3.1, 0.0, 0.0), c=(1, 3.1, 0.0))
    assert race.winner(tmp_path) == "a"
    assert {count for name, count in race.calls if name == "b"} == {NUM_TOKENS[0]}
    assert {count for name, count in race.calls if name == "c"} == set(NUM_TOKENS[:2])


def test_the_answer_is_remembered_for_each_type_and_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Race(a=(1, 1, 1), b=(2, 2, 2)).winner(tmp_path)
    other = Race(a=(2, 2, 2), b=(1, 1, 1))
    assert other.winner(tmp_path) == "a" and not other.calls
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {
        "fastest": "a",
        "milliseconds": {"a": 1000.0, "b": 2000.0},
    }
    assert other.winner(tmp_path, torch.bfloat16) == "b" and other.calls
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert other.winner(tmp_path) == "b"
    monkeypatch.setattr(product_trial, "_processor", lambda: "another")
    assert Race(a=(1, 1, 1), b=(2, 2, 2)).winner(tmp_path) == "a"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"fastest": "gone"}', "\xff"])
def test_a_damaged_answer_is_found_anew(text: str, tmp_path: Path) -> None:
    race = Race(a=(1, 1, 1), b=(2, 2, 2))
    race.winner(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text, encoding="latin-1")
    race.calls.clear()
    assert race.winner(tmp_path) == "a" and race.calls
    assert json.loads(file.read_text())["fastest"] == "a"


def test_where_nothing_can_be_kept_it_is_found_all_the_same(tmp_path: Path) -> None:
    race = Race(a=(1, 1, 1), b=(2, 2, 2))
    assert race.winner(tmp_path / "is" / "not" / "there") == "a"
    assert not list(tmp_path.iterdir())


def test_of_one_way_nothing_is_tried(tmp_path: Path) -> None:
    race = Race(a=(1, 1, 1))
    assert race.winner(tmp_path) == "a"
    assert not race.calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_ways_are_tried(dtype: torch.dtype, tmp_path: Path) -> None:
    ways = ways_to_multiply(load_kernels(), dtype)
    own = {way for way in load_kernels().ways if PRODUCTS[way] == dtype}
    assert set(ways) - {"oneDNN"} == {*own, "torch"}
    assert fastest_way(ways, dtype, tmp_path) in ways
    (file,) = tmp_path.iterdir()
    milliseconds = json.loads(file.read_text())["milliseconds"]
    assert milliseconds and min(milliseconds.values()) > 0
