"""paged_engine as a worker: the engine as it comes, under the limits that all have."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Job, Limits, serve


class PagedEngine:
    """Our engine."""

    def __init__(self, limits: Limits) -> None:
        import torch

        from paged_engine import __version__
        from paged_engine.config import EngineConfig
        from paged_engine.engine import ContinuousEngine

        torch.set_num_threads(limits.threads)
        self.version = __version__
        self._engine = ContinuousEngine.from_pretrained(
            limits.model,
            dtype=limits.dtype,
            device="cpu",
            progress=False,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=limits.max_model_len,
            num_blocks=limits.num_blocks(EngineConfig().block_size),
            enable_prefix_caching=False,
        )

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        from paged_engine.request import SamplingParams

        outputs = self._engine.generate(
            [job["prompt"] for job in jobs],
            [SamplingParams(max_tokens=job["num_tokens"], ignore_eos=True) for job in jobs],
        )
        return [list(output.token_ids) for output in outputs]


if __name__ == "__main__":
    serve(PagedEngine)
