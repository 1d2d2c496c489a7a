"""Notebook 01: every answer begins with the same strange token, and goes on fluently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from paged_engine import engine_core
from paged_engine.batch import Batch, pack
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced
from paged_engine.request import Request


@contextmanager
def _reads_the_first_row() -> Iterator[None]:
    def faulty(
        scheduled: Mapping[Request, int], block_size: int, device: torch.device | str
    ) -> Batch:
        batch = pack(scheduled, block_size, device)
        batch.last_indices = torch.tensor(batch.query_starts[:-1], device=device)
        return batch

    with replaced(engine_core, "pack", faulty):
        yield


hunt(
    Hunt(
        "01",
        inject=_reads_the_first_row,
        suspects={
            "A": "A new token is not appended: the next step computes an old one instead.",
            "B": "Decode cannot see the prompt: it attends to the answer alone.",
            "C": "A step's token is read from the wrong row of its logits.",
            "D": "Positions are off by one once the prompt is computed.",
        },
        guilty="C",
        reasons={
            "A": "The log shows one new position in every step, and the right loop, given the "
            "strange token as part of the prompt, says the same rest. So it was appended.",
            "B": "Without the prompt nobody could name Paris. The right loop, which sees all of "
            "the prompt, says the same rest.",
            "C": "The strange token is what row 0 of the prompt predicts, and row 0 is read "
            "instead of the last. A decode step has one row, the first and the last at once, so "
            "all that follows is right again.",
            "D": "The log counts on without a gap from the prompt's last position, and the right "
            "loop says the same rest.",
        },
        source="vllm-project/tpu-inference, pull request 125: every answer in its report "
        'begins with "Question", https://github.com/vllm-project/tpu-inference/pull/125',
    )
)
