"""Text that a notebook prints is the same on another processor, because no choice was close.

Style, item 13: the smallest distance between the two likeliest tokens, over every token that the
notebook's own code generates, is above what rounding can do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
SMALLEST_MARGIN = 1e-3


def code_of(name: str) -> list[str]:
    notebook = json.loads((REPO / "notebooks" / name).read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def watched(code: list[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, int]]:
    """Run cells; returns for each token the margin, the cell and the token."""
    from paged_engine import engine_core

    real, margins, at = engine_core.sample, [], [""]

    def sample(logits: Any, requests: Any) -> Any:
        chosen = real(logits, requests)
        assert all(request.params.is_greedy for request in requests), "a notebook that samples"
        best = logits.float().topk(2, dim=-1).values
        for row, choice in zip(best.tolist(), chosen, strict=True):
            margins.append((row[0] - row[1], at[0], choice.token_id))
        return chosen

    monkeypatch.setattr(engine_core, "sample", sample)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in code:
        at[0] = cell
        exec(compile(cell, "<cell>", "exec"), names)
    return margins


@pytest.mark.slow
@pytest.mark.real_model
def test_no_choice_in_the_first_notebook_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = watched(code_of("00_start_here.ipynb"), monkeypatch)
    assert len(margins) > 250
    margin, cell, token_id = min(margins)
    assert margin > SMALLEST_MARGIN, f"token {token_id} won by {margin:.2g} only, in:\n{cell}"


def test_the_watcher_sees_a_close_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model whose two best tokens are nearly alike."""
    cell = """
from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from tests.helpers.fakes import OracleModel

class Close(OracleModel):
    def logits(self, chains):
        logits = super().logits(chains) * 0
        logits[:, 7] = 1.0
        logits[:, 9] = 1.0 - 5e-4
        return logits

engine = ContinuousEngine(Close(), config=EngineConfig(num_blocks=8))
engine.generate([3, 4], SamplingParams(max_tokens=2))
"""
    margins = watched([cell], monkeypatch)
    assert [token_id for _, _, token_id in margins] == [7, 7]
    assert all(0 < margin < SMALLEST_MARGIN for margin, _, _ in margins)
