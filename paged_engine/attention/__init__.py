"""Attention over the paged cache: one function, several ways to compute it.

A backend is any callable with the signature of :class:`Attend`.  `reference` is the clear
one; `sdpa` gathers blocks and calls torch's fused attention; `cpu` is C++ that reads the blocks
where they lie.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch

from paged_engine.attention.cpu import CpuAttention
from paged_engine.attention.interface import Attend
from paged_engine.attention.reference import reference_attention
from paged_engine.attention.sdpa import SdpaAttention
from paged_engine.errors import InvalidConfigError, KernelsUnavailableError
from paged_engine.kernels.library import load_kernels

__all__ = [
    "Attend",
    "CpuAttention",
    "SdpaAttention",
    "get_backend",
    "reference_attention",
    "runs_kernels",
]


def get_backend(attention: str | Attend | None, model: Any = None) -> Attend:
    """The backend of that name, the best one for None, or the callable itself.

    Args:
        attention: "reference", "sdpa", "cpu", or a function of yours.
        model: What will be run; where it is on a CPU, in fp32 or bf16, "cpu" is the best.

    Raises:
        InvalidConfigError: There is no such backend, or it cannot be called.
        KernelsUnavailableError: "cpu" was asked for and cannot be compiled here.
    """
    if attention is None:
        place = getattr(model, "device", None), getattr(model, "dtype", None)
        return CpuAttention() if runs_kernels(*place) else SdpaAttention()
    if attention == "sdpa":
        return SdpaAttention()
    if attention == "reference":
        return reference_attention
    if attention == "cpu":
        return CpuAttention()
    if isinstance(attention, str) or not callable(attention):
        raise InvalidConfigError(
            f"attention is {attention!r}; expected 'reference', 'sdpa', 'cpu' or a function "
            f"attend(q, k, v, layer, cache, batch, *, scale, ...)"
        )
    return attention


def runs_kernels(device: torch.device | None, dtype: torch.dtype | None) -> bool:
    """Whether there are kernels of ours for weights of this type, there."""
    if device is None or dtype is None or device.type != "cpu":
        return False
    return _kernels_are_here() and load_kernels().takes(dtype)


@cache
def _kernels_are_here() -> bool:
    """Whether the kernels can be had; if not, the reason is said once."""
    try:
        load_kernels()
    except KernelsUnavailableError as error:
        print(f"paged_engine: attention is torch's, which is slower: {error}", file=sys.stderr)
        return False
    return True
