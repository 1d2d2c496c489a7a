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
            "B": "Decode cannot see the prompt: it looks at the answer alone.",
            "C": "A step's token is read from the wrong row of its logits.",
            "D": "Positions are off by one once the prompt is computed.",
        },
        guilty="C",
        reasons={
            "A": "That acts after the first token, and the first is wrong already. The rest is "
            "what the right loop says of prompt and strange token, so that one was appended.",
            "B": "That acts after the step that computes the prompt, and the first wrong token "
            "comes from that step. Also, without the prompt nobody could name Paris.",
            "C": "The strange token is what row 0 of the prompt predicts, and row 0 is read "
            "instead of the last. A decode step has one row, the first and the last at once, so "
            "all that follows is right again.",
            "D": "That acts after the step that computes the prompt, and the first wrong token "
            "comes from that step.",
        },
        source="vllm-project/tpu-inference, pull request 125: every answer in its report "
        'begins with "Question", https://github.com/vllm-project/tpu-inference/pull/125',
    )
)
