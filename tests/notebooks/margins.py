"""How clearly each token of a run won, so that text is known to be the same on other processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from paged_engine import sampler

SMALLEST_MARGIN = 1e-3
SMALLEST_VOCABULARY = 256  # of the models in the notebooks; fewer are toys written by hand


@dataclass(frozen=True, order=True)
class Choice:
    """One token that won by `margin`, in that cell."""

    margin: float
    cell: str
    token_id: int


class Watch:
    """Notes the margin of every choice by `argmax`, and by the engine's sampler.

    Attributes:
        cell: What is running.
        choices: What was chosen so far.
        is_on: Whether to look.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cell = ""
        self.choices: list[Choice] = []
        self.is_on = True
        argmax, largest = torch.Tensor.argmax, sampler._largest

        def watched_argmax(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            self._note(tensor)
            return argmax(tensor, *args, **kwargs)

        def watched_largest(logits: torch.Tensor) -> torch.Tensor:
            self._note(logits)
            return largest(logits)

        monkeypatch.setattr(sampler, "_largest", watched_largest)
        monkeypatch.setattr(torch.Tensor, "argmax", watched_argmax)
        monkeypatch.setattr(torch, "argmax", watched_argmax)

    def _note(self, logits: torch.Tensor) -> None:
        if not self.is_on or logits.dim() == 0 or logits.shape[-1] < SMALLEST_VOCABULARY:
            return
        best = logits.detach().float().reshape(-1, logits.shape[-1]).topk(2, dim=-1)
        for values, ids in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            self.choices.append(Choice(values[0] - values[1], self.cell, ids[0]))

    def closest(self) -> Choice:
        """The choice that was decided by least."""
        return min(self.choices)
