"""transformers as a worker, in the three ways that `benchmark.peers` has."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Job, Limits, serve


class Transformers:
    """One of the peers; the mode is its name, and behind a colon the size of a static batch."""

    def __init__(self, limits: Limits) -> None:
        import torch
        import transformers

        from paged_engine.benchmark.peers import PEERS
        from paged_engine.config import EngineConfig
        from paged_engine.models.default_model import load_model_and_tokenizer

        torch.set_num_threads(limits.threads)
        self.version = transformers.__version__
        model, _ = load_model_and_tokenizer(limits.model, dtype=getattr(torch, limits.dtype))
        name, _, static_batch_size = limits.mode.partition(":")
        config = EngineConfig(
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )
        self._peer = PEERS[name](model, config, int(static_batch_size or limits.max_num_seqs))

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        from paged_engine.benchmark import workloads

        asked = [workloads.Job(tuple(job["prompt"]), job["num_tokens"]) for job in jobs]
        return [list(tokens) for tokens in self._peer.run(asked)]


if __name__ == "__main__":
    serve(Transformers)
