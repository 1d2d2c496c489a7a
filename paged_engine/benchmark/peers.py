"""Others that serve the same jobs with the same model: transformers, in three ways.

A peer is small: it has a name and runs jobs to tokens.  Another one is a class more and a line in
`PEERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from paged_engine.benchmark.workloads import Job
from paged_engine.config import EngineConfig

Tokens = list[tuple[int, ...]]  # the output of each job
Progress = Callable[[int], object]  # told how many jobs have ended


def in_silence(number: int) -> None:
    """Progress that nobody wants to hear of."""


class Peer(Protocol):
    """Something that serves jobs."""

    name: str

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        """The greedy tokens of each job, to its full length."""
        ...


class Naive:
    """transformers' own `generate`, prompt by prompt."""

    name = "naive"

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        return _generate_in_batches(self._model, jobs, 1, progress)


class StaticBatches:
    """`generate` on batches of so many prompts, as they come, padded on the left.

    Every batch waits for its longest prompt and its longest output; what a shorter output gets
    beyond its length is thrown away.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int) -> None:
        self.name = f"static batches of {batch_size}"
        self._model = model
        self._batch_size = batch_size

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        return _generate_in_batches(self._model, jobs, self._batch_size, progress)


class GenerateBatch:
    """transformers' continuous batching, the machine behind `generate_batch`.

    That function takes one output length for all, so we use what it wraps.  It works under the
    same limits as the engine: as many requests in a batch, as many tokens in a step, and a pool
    that is large enough for them.  Setting it up is part of every call, as it is there.
    """

    name = "generate_batch"
    PAGE_SIZE = 256  # its own default

    def __init__(
        self, model: PreTrainedModel, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self._model: Any = model
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        from transformers import ContinuousBatchingConfig  # not in the oldest version we allow

        longest = max(job.num_tokens for job in jobs)
        num_seqs = min(self._max_num_seqs, len(jobs))
        limits = ContinuousBatchingConfig(
            page_size=self.PAGE_SIZE,
            num_blocks=num_seqs * (longest // self.PAGE_SIZE + 2),
            max_batch_tokens=self._max_num_batched_tokens,
            max_requests_per_batch=num_seqs,
        )
        greedy = GenerationConfig(
            do_sample=False,
            eos_token_id=-1,  # its way to say: none
            max_new_tokens=max(job.num_output_tokens for job in jobs),
        )
        tokens: dict[str, tuple[int, ...]] = {}
        with self._model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=limits
        ) as manager:
            for i, job in enumerate(jobs):
                manager.add_request(
                    list(job.prompt_token_ids),
                    request_id=str(i),
                    max_new_tokens=job.num_output_tokens,
                )
            while len(tokens) < len(jobs):
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("its thread ended before all requests had")
                elif result.error is not None:
                    raise RuntimeError(str(result.error))
                elif result.is_finished():
                    tokens[result.request_id] = tuple(result.generated_tokens)
                    progress(len(tokens))
        return [tokens[str(i)] for i in range(len(jobs))]


PEERS: dict[str, Callable[[PreTrainedModel, EngineConfig, int], Peer]] = {
    "naive": lambda model, config, static_batch_size: Naive(model),
    "static": lambda model, config, static_batch_size: StaticBatches(model, static_batch_size),
    "generate_batch": lambda model, config, static_batch_size: GenerateBatch(
        model, config.max_num_seqs, config.max_num_batched_tokens
    ),
}


def _generate_in_batches(
    model: PreTrainedModel, jobs: Sequence[Job], batch_size: int, progress: Progress
) -> Tokens:
    tokens: Tokens = []
    for start in range(0, len(jobs), batch_size):
        tokens += _generate(model, jobs[start : start + batch_size])
        progress(len(tokens))
    return tokens


def _generate(model: PreTrainedModel, jobs: Sequence[Job]) -> Tokens:
    """One call of `generate`, to the longest output of them."""
    longest = max(len(job.prompt_token_ids) for job in jobs)
    rows = [longest - len(job.prompt_token_ids) for job in jobs]  # how much each is padded
    ids = [[0] * n + list(job.prompt_token_ids) for n, job in zip(rows, jobs, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in rows]
    with _without_end_of_sequence(model):
        sequences = model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=max(job.num_output_tokens for job in jobs),
            do_sample=False,
        )
    outputs: list[list[int]] = sequences[:, longest:].tolist()
    return [
        tuple(output[: job.num_output_tokens]) for output, job in zip(outputs, jobs, strict=True)
    ]


@contextmanager
def _without_end_of_sequence(model: PreTrainedModel) -> Iterator[None]:
    """The end-of-sequence token is taken from `generate` meanwhile.

    `min_new_tokens` would forbid that token, where the engine's `ignore_eos` only goes on after it.
    """
    settings: Any = model.generation_config
    eos_token_id, settings.eos_token_id = settings.eos_token_id, None
    try:
        yield
    finally:
        settings.eos_token_id = eos_token_id
