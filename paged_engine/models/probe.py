"""Whether a model gives the same logits packed and paged as alone, tried before it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from paged_engine.batch import pack
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models.runner import ModelRunner
from paged_engine.request import Request

PROBE_LENGTHS = (19, 7)  # more than one block of the usual size, and less


class Probe:
    """What a model says to each of two prompts alone, to hold runners of it against.

    Args:
        name: Of the model.
        logits_of: Its logits `[T, vocab_size]` for a prompt of T tokens, alone.
        vocab_size, max_model_len, device: Of it.
        block_size: Tokens a block.

    Raises:
        UnsupportedModelError: The model cannot be run.
    """

    def __init__(
        self,
        name: str,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        *,
        vocab_size: int,
        max_model_len: int,
        device: torch.device,
        block_size: int,
    ) -> None:
        self._name = name
        self._limits = (vocab_size, max_model_len, block_size)
        requests, _ = _probe_requests(*self._limits)
        prompts = [torch.tensor(request.token_ids, device=device) for request in requests]
        with torch.inference_mode(), self._explained():
            self._alone = [logits_of(prompt)[-2:] for prompt in prompts]

    @torch.inference_mode()
    def check(self, runner: ModelRunner) -> None:
        """Compute both prompts packed, then one more token of each, and compare.

        Raises:
            UnsupportedModelError: With what was wrong.
        """
        block_size = self._limits[-1]
        requests, num_blocks = _probe_requests(*self._limits)
        cache = PagedKVCache(
            runner.kv_shape, num_blocks, block_size, dtype=runner.dtype, device=runner.device
        )
        packed: list[torch.Tensor] = []
        with self._explained():
            for _ in ("prefill", "decode"):
                counts = {r: max(1, r.num_tokens - 1 - r.num_computed_tokens) for r in requests}
                packed.append(runner.forward(pack(counts, block_size, runner.device), cache))
                for request, num_tokens in counts.items():
                    request.num_computed_tokens += num_tokens
        tolerance = 1e-3 if runner.dtype == torch.float32 else 0.1
        scale = max(1.0, *(float(logits.abs().max()) for logits in self._alone))
        for logits, expected in zip(torch.stack(packed, dim=1), self._alone, strict=True):
            difference = float((logits.float() - expected.float()).abs().max())
            if not difference <= tolerance * scale:
                raise UnsupportedModelError(
                    f"{self._name} gives other logits packed and paged than alone (they differ by "
                    f"{difference:.3g}, expected at most {tolerance * scale:.3g}): either the "
                    f"model does something this engine does not know, or the attention function "
                    f"is wrong"
                )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UnsupportedModelError(
                f"{self._name} cannot be run with this attention function over packed prompts: "
                f"{type(error).__name__}: {error}"
            ) from error


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
