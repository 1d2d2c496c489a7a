"""Attention in C++ over the blocks where they lie: see kernels/paged_attention.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paged_engine.batch import Batch
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.kernels.library import AttentionCall, Kernels, load_kernels
from paged_engine.kv_cache import PagedKVCache

MOST_ROWS = 64  # small enough for a core's nearest cache, large enough to use each key often


@dataclass(slots=True)
class _Work:
    """What all layers of a step share that have as many query heads for a KV head.

    Attributes:
        tiles: `[W, 4]`: sequence, first row in the batch, position of it, number of tokens.
        tables: The block tables, dense.
        most_rows: Query heads times tokens in a tile, for one KV head.
    """

    tiles: torch.Tensor
    tables: torch.Tensor
    most_rows: int


class CpuAttention:
    """See :class:`paged_engine.attention.Attend`; for tensors of fp32 or bf16 on a CPU.

    Raises:
        KernelsUnavailableError: The kernels cannot be compiled here; it says why.
    """

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = load_kernels() if kernels is None else kernels
        self._scratch = torch.empty(0)

    def __call__(
        self,
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
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class.

        Args:
            out: `[T, num_heads, value_dim]`, dense, for the result; None: it is made.
        """
        if q.dtype != cache.k.dtype or not self._kernels.takes(q.dtype) or q.device.type != "cpu":
            raise InvalidConfigError(
                f"the attention 'cpu' was given queries of {q.dtype} on {q.device} and a cache of "
                f"{cache.k.dtype}; expected both fp32 or both bf16 on the CPU: use 'sdpa'"
            )
        k_cache, v_cache = cache.k[layer], cache.v[layer]
        num_heads, head_dim = q.shape[1:]
        num_kv_heads, value_dim = k_cache.shape[1], v_cache.shape[-1]
        if q.stride(-1) != 1:
            q = q.contiguous()
        if sinks is not None:
            sinks = sinks.float().contiguous()
        if out is None:
            out = q.new_empty(q.shape[0], num_heads, value_dim)
        call = AttentionCall(
            q=q.data_ptr(),
            out=out.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=v_cache.data_ptr(),
            sinks=None if sinks is None else sinks.data_ptr(),
            q_token_stride=q.stride(0),
            q_head_stride=q.stride(1),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            block_size=cache.block_size,
            window=window or 0,
            num_threads=torch.get_num_threads(),
            scale=scale,
            soft_cap=soft_cap or 0.0,
        )
        self.renew([call], cache, batch)
        self._kernels.attend(call, q.dtype)
        return out

    def renew(self, calls: Sequence[AttentionCall], cache: PagedKVCache, batch: Batch) -> None:
        """Set all that changes from step to step, where the tokens are as many as before.

        Args:
            calls: One or more, of layers with the same numbers of heads.
            cache, batch: As in a call.
        """
        some = calls[0]
        heads_per_kv = some.num_heads // some.num_kv_heads
        plan = f"cpu {heads_per_kv}"  # layers may differ in it, and tiles with them
        if plan not in batch.memo:
            batch.memo[plan] = _plan(batch, cache, heads_per_kv)
        work: _Work = batch.memo[plan]
        scratch = self._scratch_for(
            some.num_threads, work.most_rows, some.num_kv_heads, some.head_dim, some.value_dim
        )
        tables, tiles = work.tables.data_ptr(), work.tiles.data_ptr()
        table_width, num_work = work.tables.shape[1], work.tiles.shape[0]
        for call in calls:
            call.block_tables, call.work, call.scratch = tables, tiles, scratch.data_ptr()
            call.table_width, call.num_work, call.most_rows = table_width, num_work, work.most_rows

    def _scratch_for(self, num_threads: int, *sizes: int) -> torch.Tensor:
        size = num_threads * self._kernels.scratch_size(*sizes)
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size)
        return self._scratch


def _plan(batch: Batch, cache: PagedKVCache, heads_per_kv: int) -> _Work:
    """Cut the step into pieces that fit a thread's scratch, the longest context first.

    Raises:
        InvariantError: A table names a block that the cache has not, which C++ would read.
    """
    tables = batch.block_tables.contiguous()
    if tables.numel() and not 0 <= int(tables.min()) <= int(tables.max()) < cache.num_blocks:
        raise InvariantError(
            f"a block table names block {int(tables.max())} or {int(tables.min())}; expected 0 to "
            f"{cache.num_blocks - 1}"
        )
    if max(batch.context_lens) > tables.shape[1] * cache.block_size:
        raise InvariantError(
            f"a sequence has {max(batch.context_lens)} tokens in tables of {tables.shape[1]} "
            f"blocks of {cache.block_size}"
        )
    most = max(1, MOST_ROWS // heads_per_kv)
    tiles = [
        (s, first + start, context - length + start, min(most, length - start))
        for s, (first, length, context) in enumerate(
            zip(batch.query_starts[:-1], batch.query_lens, batch.context_lens, strict=True)
        )
        for start in range(0, length, most)
    ]
    tiles.sort(key=lambda tile: -tile[2])  # the long ones first, so that no thread ends late
    return _Work(torch.tensor(tiles).reshape(-1, 4), tables, most * heads_per_kv)
