"""The roof: what this machine can do at best, and so how fast a step could be at most.

A step moves bytes and multiplies numbers.  It takes at least as long as either of them takes alone
at the machine's best rate (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009).  Both
rates are measured in the same run as the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from paged_engine.errors import KernelsUnavailableError
from paged_engine.kernels.library import load_kernels
from paged_engine.kv_cache import KVCacheShape
from paged_engine.models.packed_linear import pack_linear

# One step: for each sequence the tokens in its cache before, and those that it computes.
Step = Sequence[tuple[int, int]]

READ_BYTES = 512_000_000  # many times what a processor keeps
GEMM_SIZE = 2048
TRIES = 3  # of each, each time; the best one counts


@dataclass(frozen=True, slots=True)
class Range:
    """What the rounds came to."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Roof:
    """The machine's rates; the highest are the roof, for whatever disturbs it only lowers them.

    Attributes:
        bandwidth: Bytes a second that it reads from memory.
        gemm: Floating point operations a second in a large product of matrices, in the precision
            of the weights.
    """

    bandwidth: Range
    gemm: Range


class RoofUnderTest:
    """Measures the roof, now and then.

    Args:
        dtype: Of the matrices.
        device: Where it all happens.
        read_bytes, gemm_size: How large; the tests take less.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        read_bytes: int = READ_BYTES,
        gemm_size: int = GEMM_SIZE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.bandwidths: list[float] = []
        self.gemms: list[float] = []
        self._clock = clock
        self._device = device
        # integers: sums of floats take longer than reading them
        self._numbers = torch.ones(read_bytes // 8, dtype=torch.int64, device=device)
        size = (gemm_size, gemm_size)
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(2))
        # both ways in which the engine multiplies: which is faster depends on the processor
        ways: list[Callable[[], Any]] = [lambda: nn.functional.linear(x, weight)]
        if device.type == "cpu":
            with suppress(KernelsUnavailableError):
                packed = pack_linear(load_kernels(), [weight])
                ways.append(lambda: packed(x))
        self._ways = ways
        self._flops = 2 * gemm_size**3
        self._best(self._numbers.sum, *self._ways)  # what is done only once is done

    def measure(self) -> None:
        """Once more."""
        self.bandwidths.append(self._numbers.nbytes / self._best(self._numbers.sum))
        self.gemms.append(self._flops / self._best(*self._ways))

    def roof(self) -> Roof:
        """What came of it so far."""
        return Roof(Range.of(self.bandwidths), Range.of(self.gemms))

    @torch.inference_mode()
    def _best(self, *ways: Callable[[], Any]) -> float:
        """The least seconds that any of them took."""
        best = float("inf")
        for way in ways * TRIES:
            self._wait()
            began = self._clock()
            way()
            self._wait()
            best = min(best, self._clock() - began)
        return best

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a step of a dense model cannot do without.

    Every layer is taken to look at the whole context, and every weight to be needed for every
    token: for models with windows or experts it is too much.

    Attributes:
        weight_bytes: Read in each step, the output head included; an embedding is looked up only.
        kv_bytes: Of the keys and values of one token, in all layers.
        layer_weights: Numbers in the matrices that each token is multiplied with.
        head_weights: And in the output head, for the last token of each sequence.
        pair_flops: Operations for one query and one key with its value, in all layers.
    """

    weight_bytes: int
    kv_bytes: int
    layer_weights: int
    head_weights: int
    pair_flops: int

    def num_bytes(self, step: Step) -> int:
        """To be read at least."""
        return self.weight_bytes + self.kv_bytes * sum(start + number for start, number in step)

    def num_flops(self, step: Step) -> int:
        """To be done at least."""
        num_tokens = sum(number for _, number in step)
        pairs = sum(number * start + number * (number + 1) // 2 for start, number in step)
        products = self.layer_weights * num_tokens + self.head_weights * len(step)
        return 2 * products + self.pair_flops * pairs


def cost_of(model: PreTrainedModel, shape: KVCacheShape, dtype: torch.dtype) -> ModelCost:
    """What the model's steps cost; ask while its weights are there."""
    head: Any = model.get_output_embeddings()
    lookups = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    } - {id(head.weight)}
    read = [p for p in model.parameters() if id(p) not in lookups]  # a tied one comes once
    config: Any = model.config.get_text_config()
    heads = shape.num_layers * config.num_attention_heads
    return ModelCost(
        weight_bytes=sum(p.nbytes for p in read),
        kv_bytes=shape.bytes_per_token(dtype),
        layer_weights=sum(p.numel() for p in read if p.dim() > 1 and p is not head.weight),
        head_weights=head.weight.numel(),
        pair_flops=2 * heads * sum(shape.head_dims),
    )
