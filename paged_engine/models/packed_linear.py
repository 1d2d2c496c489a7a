"""Matrix products with weights laid out once for the processor, by oneDNN where torch has it.

A weight of a checkpoint lies row after row.  oneDNN, which torch brings, can lay it out in the
blocks that its inner loops read, and then spends nothing on that at each call: at batch 32 the
products of a step take half as long.

Where it packs fp32 but not the type of the weights, as bf16 on a processor without AVX-512, they
are kept in fp32: the same products, each result rounded once, in less time and twice the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

# The layout is chosen for so many tokens; it serves all other numbers nearly as well.
TYPICAL_TOKENS = 32


class PackedLinear:
    """`x @ weight.T + bias`, for `x` of `[T, in]`.

    Args:
        weights: One or more `[out_i, in]`, of one type; their outputs lie one after the other.
        biases: For each `[out_i]`; None: none has one.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None = None
    ) -> None:
        weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0]
        bias = None if biases is None else torch.cat([b.detach() for b in biases])
        kept = packed_dtype(weight.dtype)
        self._is_packed = kept is not None
        dtype = kept or weight.dtype
        self._bias = None if bias is None else bias.to(dtype)
        weight = weight.detach().to(dtype)
        self._weight = _packed(weight.contiguous()) if self._is_packed else weight
        self._dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, in]`, dense, to `[T, out]`, of the type of `x`."""
        if self._is_packed:
            return _multiply(x.to(self._dtype), self._weight, self._bias).to(x.dtype)
        return torch.nn.functional.linear(x, self._weight, self._bias)


def packed_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """The type in which weights of that type are packed here; None: they are not."""
    return next((kept for kept in (dtype, torch.float32) if can_pack(kept)), None)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, packs weights of that type; it is tried."""
    x = torch.linspace(-1, 1, 64).to(dtype).view(2, 32)
    weight = torch.linspace(-2, 1, 48 * 32).to(dtype).view(48, 32)
    try:
        with torch.inference_mode():
            result = _multiply(x, _packed(weight), None)
    except (AttributeError, NotImplementedError, RuntimeError):  # unknown, or not for this type
        return False
    expected = torch.nn.functional.linear(x.float(), weight.float())
    return torch.allclose(result.float(), expected, rtol=0.02, atol=0.02 * float(expected.std()))


def _packed(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
    return packed


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
