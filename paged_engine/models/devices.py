"""Which device, and which number format, when the user leaves it open."""

from __future__ import annotations

import logging
from typing import Any

import torch

from paged_engine.errors import InvalidConfigError

logger = logging.getLogger(__name__)


def choose_device(device: str | None) -> torch.device:
    """The device of that name; for None CUDA where there is one, else the CPU.

    Apple's "mps" becomes the CPU, with a line that says so: nobody has proved that the engine's
    tokens are right there.

    Raises:
        InvalidConfigError: It is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidConfigError(f"device is {device!r}; expected 'cpu' or 'cuda'") from error
    if chosen.type == "mps":
        logger.warning("device 'mps' is not proved to give the right tokens; using the CPU")
        return torch.device("cpu")
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidConfigError(
            f"device is {device!r}, which was never tried with this engine; use 'cpu' or 'cuda'"
        )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfigError(
            "device is 'cuda' but torch finds no CUDA device; use device='cpu', or install a "
            "driver and a CUDA build of torch"
        )
    return chosen


def choose_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """The torch dtype for "float32", "bfloat16", "auto" or a torch dtype.

    "auto" is bfloat16 where the processor computes it natively, else float32: emulated
    bfloat16 is slower than float32 and less exact.

    Raises:
        InvalidConfigError: It is another.
    """
    if dtype == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    chosen = names.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in names.values():
        raise InvalidConfigError(
            f"dtype is {dtype!r}; expected 'auto', 'float32', 'bfloat16' or 'float16'"
        )
    if chosen is torch.float16 and device.type == "cpu":
        raise InvalidConfigError("float16 is slow and inexact on a CPU; use float32 or bfloat16")
    assert isinstance(chosen, torch.dtype)
    return chosen


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu: Any = torch.cpu
    # private names, so asked for by feature; without them the safe answer is no
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(cpu, name, bool)() for name in checks)
