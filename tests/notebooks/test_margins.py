"""The watch over close choices sees one.  What it sees in the notebooks is in test_exercises."""

from __future__ import annotations

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from tests.helpers.fakes import OracleModel
from tests.notebooks.margins import SMALLEST_MARGIN, Watch


class Close(OracleModel):
    """Its two best tokens are nearly alike."""

    def logits(self, chains):  # type: ignore[no-untyped-def]
        logits = super().logits(chains) * 0
        logits[:, 7] = 1.0
        logits[:, 9] = 1.0 - 5e-4
        return logits


def test_a_close_choice_of_the_engine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    engine = ContinuousEngine(Close(vocab_size=300), config=EngineConfig(num_blocks=8))
    engine.generate([3, 4], SamplingParams(max_tokens=2))
    assert [choice.token_id for choice in watch.choices] == [7, 7]
    assert 0 < watch.closest().margin < SMALLEST_MARGIN


@pytest.mark.parametrize("choose", [lambda row: row.argmax(), lambda row: torch.argmax(row, -1)])
def test_a_close_choice_by_hand_is_seen(choose, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    logits = torch.zeros(1, 300)
    logits[0, 7], logits[0, 9] = 1.0, 1.0 - 5e-4
    watch = Watch(monkeypatch)
    choose(logits[0])
    assert watch.closest().token_id == 7
    assert 0 < watch.closest().margin < SMALLEST_MARGIN


def test_toys_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    torch.tensor([1.0, 1.0]).argmax()
    assert watch.choices == []
