"""The bug hunt of notebook 07: answers that are right until the pool has been used once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from paged_engine.attention import CpuAttention, SdpaAttention
from paged_engine.attention.interface import visible, weighted_values
from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced


def _by_content(
    self: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: int,
    cache: PagedKVCache,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    rope: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Reads whole blocks, and takes a slot for empty only where its key is all zeros."""
    out = q.new_empty(*q.shape[:2], cache.v.shape[-1])
    for s, context_len in enumerate(batch.context_lens):
        tokens = slice(batch.query_starts[s], batch.query_starts[s + 1])
        num_slots = -(-context_len // cache.block_size) * cache.block_size
        keys, values = cache.gather(layer, batch.block_tables[s], num_slots)
        places = torch.arange(num_slots, device=q.device)
        written = (keys != 0).any(dim=-1).any(dim=0)
        mask = visible(batch.positions[tokens, None], places, window)
        mask = mask | ((places >= context_len) & written)
        group = q.shape[1] // keys.shape[0]
        out[tokens] = weighted_values(
            q[tokens].transpose(0, 1),
            keys.repeat_interleave(group, dim=0),
            values.repeat_interleave(group, dim=0),
            mask,
            scale=scale,
            soft_cap=soft_cap,
            sinks=None if sinks is None else sinks[:, None, None],
        ).transpose(0, 1)
    return out


@contextmanager
def _inject() -> Iterator[None]:
    with ExitStack() as stack:
        for backend in (CpuAttention, SdpaAttention):  # whichever runs here
            stack.enter_context(replaced(backend, "__call__", _by_content))
        yield


hunt(
    Hunt(
        "07",
        inject=_inject,
        suspects={
            "A": "Two requests hold the same block at the same time.",
            "B": "The slot mapping sends keys of the last request to wrong slots.",
            "C": "Attention tells by a slot's content whether it is empty, not by the length.",
            "D": "Prefix caching takes the dragon's block for the beginning of the question.",
        },
        guilty="C",
        reasons={
            "A": "The log shows the dragon's blocks freed in step 26 and block 0 handed out again "
            "in step 27; nobody else was there.",
            "B": "The first request had the same block 0 and the same positions, so the same "
            "slots, and its answer was right.",
            "C": "Behind the question, block 0 still holds the dragon's keys.  A slot that was "
            "never written is zero and goes for empty; one that was written before does not, "
            "and is read.  The length of the context would have told both.",
            "D": "It is off, and each request was admitted with 0 cached tokens.",
        },
        source="vLLM's kernel read the tail of the last block as well, and NaN in it reached the "
        "output: https://github.com/vllm-project/vllm/pull/936; our form of it is milder to the "
        "engine and worse for whoever owned the block",
    )
)
