"""From a scheduler's decision to flat tensors.

The tokens of all requests lie one after the other, without padding, whatever their number:
a prompt, a chunk of one and a single decoded token are the same thing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from paged_engine.errors import InvariantError
from paged_engine.request import Request


@dataclass(slots=True)
class Batch:
    """One step's input: T tokens of S sequences.

    Attributes:
        input_ids: `[T]`, int64.
        positions: `[T]`, int64, of each token in its own sequence.
        slot_mapping: `[T]`, int64, where the KV of each token is written.
        block_tables: `[S, most blocks of any]`, int64; short rows are filled up with their
            own first block, so that a masked read never meets the NaN of another sequence.
        context_lens: For each sequence how many tokens its cache holds once this step's are
            written.
        query_starts: `S + 1` offsets; sequence s has tokens `query_starts[s]` up to
            `query_starts[s + 1]`.
        last_indices: `[S]`, int64, the last token of each sequence: its logits say what
            comes next.
        memo: For attention backends, to keep between the layers of this step what they
            derive from the batch.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    context_lens: list[int]
    query_starts: list[int]
    last_indices: torch.Tensor
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return self.query_starts[-1]

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens)

    @property
    def query_lens(self) -> list[int]:
        return [end - start for start, end in pairwise(self.query_starts)]


def pack(scheduled: Mapping[Request, int], block_size: int, device: torch.device | str) -> Batch:
    """The tensors of one step.

    Args:
        scheduled: For each request how many tokens, from its `num_computed_tokens` on.
        block_size: Tokens a block.
        device: Where the tensors go.

    Raises:
        InvariantError: A request has fewer blocks than its tokens need, or computes nothing,
            or more tokens than it knows.
    """
    starts = np.fromiter((r.num_computed_tokens for r in scheduled), np.int64, len(scheduled))
    lengths = np.fromiter(scheduled.values(), np.int64, len(scheduled))
    _check(scheduled, block_size)

    tables = np.zeros((len(scheduled), max(len(r.block_table) for r in scheduled)), np.int64)
    input_ids: list[int] = []
    for row, (request, num_tokens) in enumerate(scheduled.items()):
        start = request.num_computed_tokens
        input_ids += request.token_ids[start : start + num_tokens]
        tables[row] = request.block_table[0]
        tables[row, : len(request.block_table)] = request.block_table

    ends = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(scheduled)), lengths)
    positions = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    slots = tables[rows, positions // block_size] * block_size + positions % block_size

    def to_device(array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        input_ids=torch.tensor(input_ids, device=device),
        positions=to_device(positions),
        slot_mapping=to_device(slots),
        block_tables=to_device(tables),
        context_lens=(starts + lengths).tolist(),
        query_starts=[0, *ends.tolist()],
        last_indices=to_device(ends - 1),
    )


def _check(scheduled: Mapping[Request, int], block_size: int) -> None:
    """Catch a scheduler or pool that does not keep its word before anything is computed."""
    for request, num_tokens in scheduled.items():
        end = request.num_computed_tokens + num_tokens
        if num_tokens < 1 or end > request.num_tokens:
            raise InvariantError(
                f"{request} was scheduled for {num_tokens} tokens; expected 1 to "
                f"{request.num_tokens - request.num_computed_tokens}"
            )
        if end > len(request.block_table) * block_size:
            raise InvariantError(
                f"{request} needs slots for {end} tokens but its {len(request.block_table)} "
                f"blocks hold {len(request.block_table) * block_size}; allocate before scheduling"
            )
