"""Where keys and values live: one tensor of blocks for K and one for V."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paged_engine.errors import InvalidConfigError

# Of what the device has free; the rest is for activations and for everybody else.
CUDA_SHARE = 0.8
CPU_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class KVCacheShape:
    """The part of the shape that the model decides."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    value_dim: int | None = None  # of the values, where theirs is not that of the keys

    @property
    def head_dims(self) -> tuple[int, int]:
        """Numbers a head of keys, and of values."""
        return self.head_dim, self.head_dim if self.value_dim is None else self.value_dim

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that the keys and values of one token take, over all layers."""
        return self.num_layers * self.num_kv_heads * sum(self.head_dims) * dtype.itemsize


class PagedKVCache:
    """Keys and values in blocks, `[num_layers, num_blocks, num_kv_heads, block_size, head_dim]`.

    A slot is a place for one token: slot s is offset `s % block_size` of block
    `s // block_size`, in every layer.

    Attributes:
        k, v: The two tensors.
    """

    def __init__(
        self,
        shape: KVCacheShape,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        size = (shape.num_layers, num_blocks, shape.num_kv_heads, block_size)
        self.k, self.v = (
            _zeros((*size, dim), dtype, torch.device(device)) for dim in shape.head_dims
        )

    @property
    def num_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def write(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Store the keys and values of T tokens.

        Args:
            layer: Which layer's.
            k, v: `[T, num_kv_heads, head_dim]`.
            slot_mapping: `[T]`, the slot of each token.
        """
        blocks = slot_mapping // self.block_size
        offsets = slot_mapping % self.block_size
        self.k[layer][blocks, :, offsets] = k
        self.v[layer][blocks, :, offsets] = v

    def gather(
        self, layer: int, block_table: torch.Tensor, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `num_tokens` keys and values of one sequence, in order.

        Args:
            layer: Which layer's.
            block_table: `[num_blocks_of_it]`, block ids.
            num_tokens: How many; the rest of the last block is left out.

        Returns:
            k and v, each `[num_kv_heads, num_tokens, head_dim]`.
        """
        num_blocks = -(-num_tokens // self.block_size)
        table = block_table[:num_blocks]

        def in_order(cache: torch.Tensor) -> torch.Tensor:
            blocks = cache[layer].transpose(0, 1).index_select(1, table)
            return blocks.flatten(1, 2)[:, :num_tokens]

        return in_order(self.k), in_order(self.v)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, in all layers; each pair is (from, to)."""
        if not pairs:
            return
        sources, targets = (list(ids) for ids in zip(*pairs, strict=True))
        self.k[:, targets] = self.k[:, sources]
        self.v[:, targets] = self.v[:, sources]

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        """Wipe blocks that may hold NaN, before somebody else gets them."""
        if block_ids:
            self.k[:, list(block_ids)] = 0
            self.v[:, list(block_ids)] = 0


def num_blocks_for(
    shape: KVCacheShape,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory: int | None,
    most_tokens: int,
) -> int:
    """How many blocks a memory budget pays for.

    Args:
        shape: Of the model's keys and values.
        block_size: Tokens a block.
        dtype: Of the cache.
        device: Where it will live.
        memory: Bytes for keys and values together.  None: a share of what `device` has free,
            but no more than `most_tokens` could fill.
        most_tokens: What all requests together can ever use.

    Raises:
        InvalidConfigError: The budget does not pay for a single block.
    """
    per_block = shape.bytes_per_token(dtype) * block_size
    if memory is None:
        by_memory = free_memory(device) // per_block
        number = min(by_memory, -(-most_tokens // block_size))
    else:
        number = memory // per_block
    if number < 1:
        have = "the free memory" if memory is None else f"kv_cache_memory={memory}"
        raise InvalidConfigError(
            f"one block of {block_size} tokens takes {per_block} bytes, more than {have}; "
            f"expected room for at least one: give more memory or a smaller block_size"
        )
    return number


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, not whatever memory holds: a masked NaN still spoils a weighted sum.

    On a CPU the system gives zeroed pages when they are first written, so that a large cache costs
    neither time nor memory before it is used; `torch.zeros` writes all of it at once.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    raw = np.zeros(math.prod(size) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(size)


def free_memory(device: torch.device) -> int:
    """Bytes that a cache on `device` may take: a share of what is free there now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return int(_free_host_memory() * CPU_SHARE)


def _free_host_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30  # Windows says nothing without a library; assume a small machine
