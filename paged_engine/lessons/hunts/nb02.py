"""Notebook 02: the second request of an engine begins well and then talks nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.models import LlamaRunner, TransformersRunner


@contextmanager
def _counts_on() -> Iterator[None]:
    """New tokens take their positions from a counter a seat, which nobody sets back to 0."""
    seats: WeakKeyDictionary[PagedKVCache, dict[int, int]] = WeakKeyDictionary()

    def misplaced(batch: Batch, cache: PagedKVCache) -> Batch:
        counters = seats.setdefault(cache, {})
        positions = batch.positions.clone()
        for seat, length in enumerate(batch.query_lens):
            place = counters.get(seat, 0)
            if length == 1 and batch.context_lens[seat] > 1:  # not a prompt
                positions[batch.query_starts[seat]] = place
            counters[seat] = place + length
        return replace(batch, positions=positions)

    def wrong(runner: Any) -> Any:
        right = runner.forward

        def forward(self: Any, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
            logits: torch.Tensor = right(self, misplaced(batch, cache), cache)
            return logits

        return forward

    with ExitStack() as stack:
        for runner in (TransformersRunner, LlamaRunner):
            stack.enter_context(replaced(runner, "forward", wrong(runner)))
        yield


hunt(
    Hunt(
        "02",
        inject=_counts_on,
        suspects={
            "A": "The second request reads what the first one left behind in its blocks.",
            "B": "The prompt of the second request is computed wrongly.",
            "C": "Its new tokens stand at positions that go on from the first request's.",
            "D": "Rounding: in another order of additions a near tie falls over.",
        },
        guilty="C",
        reasons={
            "A": "Then it would matter what the first one says.  It does not: another first "
            "request of the same length gives the same wrong answer.",
            "B": "The first token of the answer comes from the prompt alone, and it is right.",
            "C": "A counter that nobody sets back: the prompt is placed from 0 on, the new tokens "
            "behind the end of the first request.  So the distance from them to the prompt is "
            "too large by all that the first request had.",
            "D": "Each token of both answers won by more than 0.05, hundreds of times what "
            "rounding moves; and a first request of another length gives other wrong tokens.",
        },
        source="transformers had it for Qwen-VL, whose second generation took a position offset "
        "over from the first: https://github.com/huggingface/transformers/pull/43952",
    )
)
