"""The compiled kernels as Python functions over torch tensors."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from paged_engine.kernels.build import INSTRUCTIONS, library

_POINTERS = ("q", "out", "k_cache", "v_cache", "block_tables", "work", "sinks", "scratch")
_NUMBERS = (
    *("q_token_stride", "q_head_stride", "num_work", "table_width", "num_heads", "num_kv_heads"),
    *("head_dim", "value_dim", "block_size", "window", "num_threads", "most_rows"),
)


class AttentionCall(ctypes.Structure):
    """`struct Attention` of paged_attention.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
    ]


class Kernels:
    """The functions of one compiled library.

    Args:
        path: Of the library.
    """

    def __init__(self, path: Path) -> None:
        self._library: Any = ctypes.CDLL(str(path))
        self._library.paged_attention_scratch_size.restype = ctypes.c_int64
        self._library.paged_attention_scratch_size.argtypes = [ctypes.c_int64] * 3
        self._attend = {
            torch.float32: self._library.paged_attention_float,
            torch.bfloat16: self._library.paged_attention_bfloat16,
        }
        for function in self._attend.values():
            function.argtypes = [ctypes.POINTER(AttentionCall)]
            function.restype = None

    def scratch_size(self, most_rows: int, head_dim: int, value_dim: int) -> int:
        """Floats that a thread needs for attention."""
        return int(self._library.paged_attention_scratch_size(most_rows, head_dim, value_dim))

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether there is a kernel for numbers of this kind."""
        return dtype in self._attend

    def attend(self, call: AttentionCall, dtype: torch.dtype) -> None:
        """Attention of one layer; see paged_attention.cpp."""
        self._attend[dtype](ctypes.byref(call))


@cache
def load_kernels() -> Kernels:
    """The kernels for this processor, compiled if they are not yet.

    `PAGED_ENGINE_ISA` takes fewer of its instructions: AVX512, AVX2 or DEFAULT.

    Raises:
        KernelsUnavailableError: They cannot be had here; it says why.
    """
    capability = os.environ.get("PAGED_ENGINE_ISA") or torch.backends.cpu.get_cpu_capability()
    return Kernels(library(capability if capability in INSTRUCTIONS else "DEFAULT"))
