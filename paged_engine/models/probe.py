"""Whether a model gives the same logits packed and paged as alone, tried before it serves."""

from __future__ import annotations

import torch

from paged_engine.batch import pack
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.transformers_runner import TransformersRunner
from paged_engine.request import Request

PROBE_LENGTHS = (19, 7)  # more than one block of the usual size, and less


@torch.inference_mode()
def probe(runner: TransformersRunner, block_size: int) -> None:
    """Compute two packed prompts, then one more token of each, and compare with each alone.

    Raises:
        UnsupportedModelError: With what was wrong.
    """
    name = type(runner.model).__name__
    requests, num_blocks = _probe_requests(runner.vocab_size, runner.max_model_len, block_size)
    cache = PagedKVCache(
        runner.kv_shape, num_blocks, block_size, dtype=runner.dtype, device=runner.device
    )
    packed: list[torch.Tensor] = []
    try:
        prompts = [torch.tensor([r.token_ids], device=runner.device) for r in requests]
        alone = [runner.model(input_ids=p, use_cache=False).logits[0, -2:] for p in prompts]
        for _ in ("prefill", "decode"):
            counts = {r: max(1, r.num_tokens - 1 - r.num_computed_tokens) for r in requests}
            packed.append(runner.forward(pack(counts, block_size, runner.device), cache))
            for request, num_tokens in counts.items():
                request.num_computed_tokens += num_tokens
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} cannot be run with this attention function over packed prompts: "
            f"{type(error).__name__}: {error}"
        ) from error
    tolerance = 1e-3 if runner.dtype == torch.float32 else 0.1
    scale = max(1.0, *(float(logits.abs().max()) for logits in alone))
    for logits, expected in zip(torch.stack(packed, dim=1), alone, strict=True):
        difference = float((logits.float() - expected.float()).abs().max())
        if not difference <= tolerance * scale:
            raise UnsupportedModelError(
                f"{name} gives other logits packed and paged than alone (they differ by "
                f"{difference:.3g}, expected at most {tolerance * scale:.3g}): either the "
                f"model does something this engine does not know, or the attention function "
                f"is wrong"
            )


def _probe_requests(
    vocab_size: int, max_model_len: int, block_size: int
) -> tuple[list[Request], int]:
    """Two prompts, in blocks handed out from the last to the first, and how many blocks."""
    lengths = [max(2, min(n, max_model_len)) for n in PROBE_LENGTHS]
    requests = [
        Request(str(n), [(37 * n + 11 * i) % vocab_size for i in range(n)]) for n in lengths
    ]
    counts = [-(-request.num_tokens // block_size) for request in requests]
    ids = list(range(sum(counts)))
    for request, count in zip(requests, counts, strict=True):
        request.block_table = [ids.pop() for _ in range(count)]
    return requests, sum(counts)
