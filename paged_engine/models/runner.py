"""What the engine needs of a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from paged_engine.batch import Batch
from paged_engine.kv_cache import KVCacheShape, PagedKVCache


@runtime_checkable
class ModelRunner(Protocol):
    """A model that computes packed batches over a paged cache.

    Attributes:
        kv_shape: The part of the cache's shape that the model decides.
        dtype, device: Of its weights, and so of the cache.
        vocab_size: Token ids are 0 to vocab_size - 1.
        max_model_len: The most positions it was made for.
        eos_token_ids: Tokens that end a text.
    """

    kv_shape: KVCacheShape
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        """Write this step's KV into `cache` and return the logits `[S, vocab_size]` that
        follow the last token of each sequence."""
        ...
