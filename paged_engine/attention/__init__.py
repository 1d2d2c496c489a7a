"""Attention over the paged cache: one function, several ways to compute it.

A backend is any callable with the signature of :class:`Attend`.  `reference` is the clear
one; `sdpa` gathers blocks and calls torch's fused attention.
"""

from __future__ import annotations

from paged_engine.attention.interface import Attend
from paged_engine.attention.reference import reference_attention
from paged_engine.attention.sdpa import SdpaAttention
from paged_engine.errors import InvalidConfigError

__all__ = ["Attend", "SdpaAttention", "get_backend", "reference_attention"]


def get_backend(attention: str | Attend | None) -> Attend:
    """The backend of that name, the default for None, or the callable itself.

    Raises:
        InvalidConfigError: There is no such backend, or it cannot be called.
    """
    if attention is None or attention == "sdpa":
        return SdpaAttention()
    if attention == "reference":
        return reference_attention
    if isinstance(attention, str) or not callable(attention):
        raise InvalidConfigError(
            f"attention is {attention!r}; expected 'reference', 'sdpa' or a function "
            f"attend(q, k, v, layer, cache, batch, *, scale, ...)"
        )
    return attention
