"""The compiled kernels as Python functions over torch tensors."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from paged_engine.errors import InvariantError
from paged_engine.kernels.build import INSTRUCTIONS, library
from paged_engine.kernels.tape import Tape

_POINTERS = ("q", "out", "k_cache", "v_cache", "block_tables", "work", "sinks", "scratch")
_NUMBERS = (
    *("q_token_stride", "q_head_stride", "num_work", "table_width", "num_heads", "num_kv_heads"),
    *("head_dim", "value_dim", "block_size", "window", "num_threads", "most_rows"),
)
_ROPE_POINTERS = ("qkv", "k_cache", "v_cache", "slots", "cos", "sin", "q_norm", "k_norm")
_ROPE_NUMBERS = (
    *("num_tokens", "num_heads", "num_kv_heads", "head_dim", "block_size", "num_slots"),
    "num_threads",
)
_PRODUCT_NUMBERS = ("rows", "depth", "columns", "num_threads")
_ROW_NUMBERS = ("rows", "width", "num_threads")
_SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
# The ways to multiply of products.cpp, by name: the numbers that each takes.
PRODUCTS = {
    "floats": torch.float32,
    "widened_pairs": torch.bfloat16,
    "dots": torch.bfloat16,
    "matrices": torch.bfloat16,
}


class AttentionCall(ctypes.Structure):
    """`struct Attention` of paged_attention.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
    ]


class RopeCall(ctypes.Structure):
    """`struct RopeAndWrite` of layers.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _ROPE_POINTERS),
        *((name, ctypes.c_int64) for name in _ROPE_NUMBERS),
        ("epsilon", ctypes.c_float),
    ]


class NormCall(ctypes.Structure):
    """`struct AddAndNorm` of layers.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "delta", "weight", "out")),
        *((name, ctypes.c_int64) for name in _ROW_NUMBERS),
        ("epsilon", ctypes.c_float),
    ]


class SiluCall(ctypes.Structure):
    """`struct SiluAndMultiply` of layers.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gate_and_up", "out")),
        *((name, ctypes.c_int64) for name in _ROW_NUMBERS),
    ]


class ProductCall(ctypes.Structure):
    """`struct Product` of products.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weights", "bias", "out", "prepared")),
        *((name, ctypes.c_int64) for name in _PRODUCT_NUMBERS),
    ]
    room: torch.Tensor | None  # what `prepared` names


class Kernels:
    """The functions of one compiled library.

    Args:
        path: Of the library.

    Attributes:
        panel_columns: Outputs in a panel of weights, for each way to multiply.
        panel_numbers: Its depth is a multiple of so many, for each way to multiply.
        ways: To multiply, for which the processor has instructions; the others are slow.
        folder: Where the library lies, and what else was found out about this machine.
    """

    def __init__(self, path: Path) -> None:
        self._library: Any = ctypes.CDLL(str(path))
        self._library.paged_attention_scratch_size.restype = ctypes.c_int64
        self._library.paged_attention_scratch_size.argtypes = [ctypes.c_int64] * 4
        self._library.run_calls.restype = ctypes.c_int64
        self._library.run_calls.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._attend = self._of_each_dtype("paged_attention")
        self._rope = self._of_each_dtype("rope_and_write")
        self._norm = self._of_each_dtype("add_and_norm")
        self._silu = self._of_each_dtype("silu_and_multiply")
        self._multiply = {way: self._function(f"multiply_{way}") for way in PRODUCTS}
        self.panel_columns = self._of_each_way("panel_columns")
        self.panel_numbers = self._of_each_way("panel_numbers")
        self.ways = [way for way, has in self._of_each_way("has_instructions").items() if has]
        self.folder = path.parent
        self._own = _OfThread()

    def _function(self, name: str, arguments: Sequence[Any] = (ctypes.c_void_p,)) -> Any:
        function = getattr(self._library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int64
        return function

    def _of_each_dtype(self, name: str) -> dict[torch.dtype, Any]:
        return {dtype: self._function(f"{name}_{its}") for dtype, its in _SUFFIXES.items()}

    def _of_each_way(self, name: str) -> dict[str, int]:
        return {way: self._function(f"{name}_{way}", ())() for way in PRODUCTS}

    @contextmanager
    def record(self) -> Iterator[Tape]:
        """What this thread calls meanwhile is done, and is on the tape, to be done again."""
        assert self._own.tape is None, "one tape at a time"
        tape = self._own.tape = Tape(self._library.run_calls, torch.get_num_threads())
        try:
            yield tape
        finally:
            self._own.tape = None

    def _run(self, function: Any, call: Any) -> int:
        if self._own.tape is not None:
            self._own.tape.add(function, call)
        return int(function(ctypes.addressof(call)))

    def scratch_size(self, most_rows: int, num_kv_heads: int, head_dim: int, value_dim: int) -> int:
        """Floats that a thread needs for attention."""
        sizes = (most_rows, num_kv_heads, head_dim, value_dim)
        return int(self._library.paged_attention_scratch_size(*sizes))

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether there is a kernel for numbers of this kind."""
        return dtype in _SUFFIXES

    def attend(self, call: AttentionCall, dtype: torch.dtype) -> None:
        """Attention of one layer; see paged_attention.cpp."""
        self._run(self._attend[dtype], call)

    def rope_and_write(self, call: RopeCall, dtype: torch.dtype) -> None:
        """Rotate one layer's queries and keys, and write keys and values; see layers.cpp.

        Raises:
            InvariantError: A slot is none of the cache; nothing was written.
        """
        check_slots(self._run(self._rope[dtype], call), call.num_slots)

    def add_and_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor,
    ) -> None:
        """`x += delta`, then `out` is the root mean square norm of x.

        Args:
            x, delta, out: `[T, width]`, dense, of one type; delta may be None.
            weight: `[width]`, fp32.
            epsilon: Keeps the root from zero.
        """
        rows, width = x.shape
        call = NormCall(
            x=x.data_ptr(),
            delta=None if delta is None else delta.data_ptr(),
            weight=weight.data_ptr(),
            out=out.data_ptr(),
            rows=rows,
            width=width,
            num_threads=torch.get_num_threads(),
            epsilon=epsilon,
        )
        self._run(self._norm[x.dtype], call)

    def silu_and_multiply(self, gate_and_up: torch.Tensor, out: torch.Tensor) -> None:
        """`out = silu(gate) * up`: `[T, 2 * width]` to `[T, width]`, both dense."""
        rows, width = out.shape
        call = SiluCall(
            gate_and_up=gate_and_up.data_ptr(),
            out=out.data_ptr(),
            rows=rows,
            width=width,
            num_threads=torch.get_num_threads(),
        )
        self._run(self._silu[out.dtype], call)

    def multiply(
        self,
        way: str,
        x: torch.Tensor,
        panels: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """`out = x @ weight.T + bias`; see products.cpp.

        Args:
            way: One of `PRODUCTS`.
            x: `[T, depth]`, dense.
            panels: `[ceil(columns / panel_columns[way]), depth, panel_columns[way]]`, dense: the
                weight, transposed, with zeros behind its last column, and behind its last row up to
                a multiple of `panel_numbers[way]`.  In bf16 `[.., depth / 2, .., 2]`: two weights
                of a column lie beside each other.
            bias: `[columns]`, fp32, or None.
            out: `[T, columns]`, dense.  It, x and the panels are of the type that the way takes.
        """
        rows, depth = x.shape
        prepared = self._room_for_x(way, rows, depth)
        call = ProductCall(
            x=x.data_ptr(),
            weights=panels.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            prepared=None if prepared is None else prepared.data_ptr(),
            rows=rows,
            depth=depth,
            columns=out.shape[1],
            num_threads=torch.get_num_threads(),
        )
        call.room = prepared  # it is there as long as the call is
        self._run(self._multiply[way], call)

    def _room_for_x(self, way: str, rows: int, depth: int) -> torch.Tensor | None:
        """Memory for x `[rows, depth]` as a product reads it, shared by later calls.

        Returns:
            fp32, enough for `[rows, depth]` with the depth padded; None where x is read as it is.
        """
        if PRODUCTS[way] == torch.float32:
            return None
        size = rows * (depth + self.panel_numbers[way])
        if self._own.room.numel() < size:
            self._own.room = torch.empty(size)
        return self._own.room


class _OfThread(threading.local):
    """What each thread has for itself: another engine may make calls on another thread.

    Attributes:
        tape: On which its calls are recorded.
        room: In which products prepare x.
    """

    def __init__(self) -> None:
        self.tape: Tape | None = None
        self.room = torch.empty(0)


def check_slots(foreign: int, num_slots: int) -> None:
    """Raise if `rope_and_write` found slots that are none of the cache's.

    Raises:
        InvariantError: There were `foreign` of them.
    """
    if foreign:
        raise InvariantError(
            f"{foreign} tokens were to be written to slots that the cache does not have; "
            f"expected 0 to {num_slots - 1}"
        )


@cache
def load_kernels() -> Kernels:
    """The kernels for this processor, compiled if they are not yet.

    `PAGED_ENGINE_ISA` takes fewer of its instructions: a key of `INSTRUCTIONS`.

    Raises:
        KernelsUnavailableError: They cannot be had here; it says why.
    """
    capability = os.environ.get("PAGED_ENGINE_ISA") or processor_capability()
    return Kernels(library(capability if capability in INSTRUCTIONS else "DEFAULT"))


def processor_capability() -> str:
    """The key of `INSTRUCTIONS` with the most that this processor has."""
    known = torch.backends.cpu.get_cpu_capability()
    features: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    if known == "AVX512" and (has := features()):  # older torch does not know them
        if has.get("amx_tile") and has.get("amx_bf16") and has.get("avx512_bf16"):
            return "AMX"
        if has.get("avx512_bf16"):
            return "AVX512_BF16"
    return known if known in INSTRUCTIONS else "DEFAULT"
