"""Matrix products with weights laid out once for the processor.

A weight of a checkpoint lies row after row.  Laid out in the order in which the inner loops read
it, a product spends nothing on that at each call, and at batch 32 takes half as long.  Who does it
best depends on the processor: our own kernels (`kernels/products.cpp`), oneDNN, which torch brings,
or torch without packing; `product_trial` finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch.nn.functional import linear, pad

from paged_engine.kernels.library import PRODUCTS, Kernels
from paged_engine.models.product_trial import Linear, Pack, fastest_way

# oneDNN's layout is chosen for so many tokens; it serves all other numbers nearly as well.
TYPICAL_TOKENS = 32


def pack_linear(
    kernels: Kernels,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] | None = None,
) -> Linear:
    """`x @ weight.T + bias`, in the way that is fastest here.

    Args:
        kernels: What our own code can do on this processor.
        weights: One or more `[out_i, in]`, of one type; their outputs lie one after the other.
        biases: For each `[out_i]`; None: none has one.
    """
    weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
    bias = None if biases is None else torch.cat([b.detach() for b in biases])
    way = best_way(kernels, weight.dtype, torch.get_num_threads())
    return ways_to_multiply(kernels, weight.dtype)[way](weight, bias)


@cache
def best_way(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> str:
    """The name of one of :func:`ways_to_multiply`: the fastest with so many threads."""
    return fastest_way(ways_to_multiply(kernels, dtype), dtype, kernels.folder)


def ways_to_multiply(kernels: Kernels, dtype: torch.dtype) -> dict[str, Pack]:
    """All that there are here for numbers of that type, by name."""
    ways: dict[str, Pack] = {}
    for way, its_dtype in PRODUCTS.items():
        if dtype == its_dtype and way in kernels.ways:
            ways[way] = partial(PanelLinear, kernels, way)
    if can_pack(dtype):
        ways["oneDNN"] = _linear_of_onednn
    ways["torch"] = _linear_of_torch
    return ways


class PanelLinear:
    """See :class:`Linear`; by our own kernels.

    Args:
        kernels: That have them.
        way: Which of them, a key of `PRODUCTS`.
        weight: `[out, in]`, of the type that it takes.
        bias: `[out]`, or None.
    """

    def __init__(
        self, kernels: Kernels, way: str, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self._kernels = kernels
        self._way = way
        self._columns, depth = weight.shape
        wide = kernels.panel_columns[way]
        together = 1 if weight.dtype == torch.float32 else 2  # of a column, next to each other
        deep = kernels.panel_numbers[way]
        if any(missing := (0, -depth % deep, 0, -self._columns % wide)):
            weight = pad(weight, missing)  # which copies even where nothing is missing
        panels = weight.reshape(-1, wide, weight.shape[1] // together, together)
        self._panels = panels.transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See :class:`Linear`; the result is put where it may be."""
        if out is None:
            out = x.new_empty(x.shape[0], self._columns)
        self._kernels.multiply(self._way, x, self._panels, self._bias, out)
        return out


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
    expected = linear(x.float(), weight.float())
    return torch.allclose(result.float(), expected, rtol=0.02, atol=0.02 * float(expected.std()))


def _linear_of_onednn(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    packed = _packed(weight.contiguous())
    return lambda x, out=None: _multiply(x, packed, bias)


def _linear_of_torch(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    return lambda x, out=None: linear(x, weight, bias)


def _packed(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
    return packed


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
