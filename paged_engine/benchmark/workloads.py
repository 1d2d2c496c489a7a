"""What is served in a benchmark: prompts and lengths, the same from the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from paged_engine.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a workload: a prompt, and how many tokens to generate."""

    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int

    @property
    def params(self) -> SamplingParams:
        """Greedy, and to the full length whatever the model says."""
        return SamplingParams(max_tokens=self.num_output_tokens, ignore_eos=True)


def mixed_lengths(
    vocab_size: int,
    num_requests: int = 32,
    prompt_lengths: tuple[int, int] = (16, 256),
    output_lengths: tuple[int, int] = (16, 128),
    seed: int = 0,
) -> list[Job]:
    """Random prompts, with lengths drawn evenly from the ranges, both ends included."""
    rng = random.Random(seed)
    jobs = []
    for _ in range(num_requests):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(rng.randint(*prompt_lengths)))
        jobs.append(Job(prompt, rng.randint(*output_lengths)))
    return jobs
