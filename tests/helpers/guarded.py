"""Tensors that end where memory does, so that whoever reads or writes behind them is stopped.

AddressSanitizer does not see what instructions for matrices read; the processor does.  Run as a
script, with the name of one of `CALLS`: it ends by a signal if a kernel leaves its tensors.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import partial

import torch

from paged_engine.attention import CpuAttention
from paged_engine.kernels.library import PRODUCTS, load_kernels
from paged_engine.models.packed_linear import PanelLinear
from tests.helpers.attention_calls import make

_PROTECT_NONE = 0


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A dense copy; the byte behind its last one can be neither read nor written."""
    size = tensor.numel() * tensor.element_size()
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    here = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    end = ctypes.c_void_p(here + whole)
    if libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), _PROTECT_NONE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=whole - size)
    return flat.view(tensor.shape).copy_(tensor)


def multiply(way: str) -> None:
    """Products whose rows, depths and columns end within tiles and at their ends."""
    for rows, depth, columns in ((1, 32, 32), (17, 96, 33), (32, 1088, 7), (300, 64, 64)):
        dtype = PRODUCTS[way]
        product = PanelLinear(
            load_kernels(), way, torch.randn(columns, depth).to(dtype), torch.randn(columns)
        )
        product._panels = guarded(product._panels)
        x = guarded(torch.randn(rows, depth).to(dtype))
        product(x, guarded(torch.empty(rows, columns, dtype=dtype)))


def attend() -> None:
    """Decoded tokens, chunks and prompts, with the last block of the cache among theirs."""
    lengths = [(1, 250), (33, 140), (47, 47), (1, 1), *((1, n) for n in range(1, 300, 15))]
    q, cache, batch = make(
        lengths, block_size=16, heads=(6, 2), dims=(64, 32), dtype=torch.bfloat16
    )
    assert int(batch.block_tables.max()) == cache.num_blocks - 1
    cache.k, cache.v = guarded(cache.k), guarded(cache.v)
    backend = CpuAttention()
    q, out = guarded(q), guarded(torch.empty(q.shape[0], 6, 32, dtype=q.dtype))
    for _ in range(2):  # the scratch is made by the first call
        backend(q, q, q, 1, cache, batch, scale=0.3, out=out)
        backend._scratch = guarded(backend._scratch)


CALLS = {**{way: partial(multiply, way) for way in PRODUCTS}, "attention": attend}

if __name__ == "__main__":
    CALLS[sys.argv[1]]()
