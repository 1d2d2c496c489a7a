"""What is served in a benchmark: prompts and lengths, the same from the same seed.

Lengths and tokens are drawn apart, so that a seed gives the same lengths for every vocabulary.
The prompts are random tokens: what they say does not matter to the time they take.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paged_engine.errors import InvalidConfigError
from paged_engine.request import SamplingParams

Lengths = tuple[int, int]  # drawn evenly between the two, both included


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a workload: a prompt, and how many tokens to generate."""

    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.num_output_tokens

    @property
    def params(self) -> SamplingParams:
        """Greedy, and to the full length whatever the model says."""
        return SamplingParams(max_tokens=self.num_output_tokens, ignore_eos=True)


class Draw:
    """Random lengths and random tokens, each from its own stream.

    Args:
        vocab_size: Token ids are below.
        seed: The same seed gives the same draws.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._lengths = random.Random(f"lengths {seed}")
        self._tokens = random.Random(f"tokens {seed}")

    def length(self, lengths: Lengths) -> int:
        """Evenly from a range."""
        return self._lengths.randint(*lengths)

    def lognormal(self, mean: float, sigma: float, lengths: Lengths) -> int:
        """Many short and a few long ones: log-normal with this mean, cut off at the range."""
        mu = math.log(mean) - sigma * sigma / 2
        value = round(self._lengths.lognormvariate(mu, sigma))
        return min(max(value, lengths[0]), lengths[1])

    def tokens(self, number: int) -> tuple[int, ...]:
        return tuple(self._tokens.randrange(self._vocab_size) for _ in range(number))


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of work.

    Attributes:
        summary: What it is, in one line.
        num_requests: How many, if nobody says otherwise.
        make: Gives that many jobs.
    """

    summary: str
    num_requests: int
    make: Callable[[Draw, int], list[Job]]


def even(prompt_lengths: Lengths, output_lengths: Lengths) -> Callable[[Draw, int], list[Job]]:
    """Random prompts, with lengths drawn evenly."""

    def make(draw: Draw, num_requests: int) -> list[Job]:
        return [
            Job(draw.tokens(draw.length(prompt_lengths)), draw.length(output_lengths))
            for _ in range(num_requests)
        ]

    return make


def _chat(draw: Draw, num_requests: int) -> list[Job]:
    """The means are those of ShareGPT in the vLLM paper (Kwon et al., arXiv 2309.06180, fig. 11).

    That lengths are log-normal is our assumption; it gives the long tail that chats have.
    """
    return [
        Job(draw.tokens(draw.lognormal(161, 1.1, (4, 1024))), draw.lognormal(338, 0.8, (4, 1024)))
        for _ in range(num_requests)
    ]


def _shared_prefix(draw: Draw, num_requests: int) -> list[Job]:
    """A few long instructions, each with many different questions behind it."""
    instructions = [draw.tokens(128) for _ in range(4)]
    return [
        Job(instructions[i % 4] + draw.tokens(draw.length((8, 64))), draw.length((16, 64)))
        for i in range(num_requests)
    ]


def _long_prompt(draw: Draw, num_requests: int) -> list[Job]:
    """The middle one of many short requests brings a long document."""
    short = even((16, 64), (32, 64))(draw, num_requests - 1)
    middle = len(short) // 2
    return [*short[:middle], Job(draw.tokens(1024), 32), *short[middle:]]


UNIFORM_PROMPTS: Lengths = (32, 512)
UNIFORM_OUTPUTS: Lengths = (32, 256)

WORKLOADS: dict[str, Workload] = {
    "standard": Workload(
        "32 requests, prompts of 16 to 256 tokens, outputs of 16 to 128",
        32,
        even((16, 256), (16, 128)),
    ),
    "uniform": Workload(
        "lengths drawn evenly, prompts from --prompt-lengths, outputs from --output-lengths",
        32,
        even(UNIFORM_PROMPTS, UNIFORM_OUTPUTS),
    ),
    "nano-vllm": Workload(
        "nano-vllm's own benchmark: 256 requests, prompts and outputs of 100 to 1024",
        256,
        even((100, 1024), (100, 1024)),
    ),
    "chat": Workload(
        "lengths as in chats: most are short, a few are long, at most 1024 and 1024", 32, _chat
    ),
    "shared-prefix": Workload(
        "four instructions of 128 tokens, each with many questions behind it", 32, _shared_prefix
    ),
    "long-prompt": Workload("one prompt of 1024 tokens among short ones", 16, _long_prompt),
}


def make_jobs(
    name: str,
    vocab_size: int,
    *,
    num_requests: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    prompt_lengths: Lengths = UNIFORM_PROMPTS,
    output_lengths: Lengths = UNIFORM_OUTPUTS,
) -> list[Job]:
    """The jobs of a workload.

    Args:
        name: One of `WORKLOADS`.
        vocab_size: Of the model.
        num_requests: None: as many as the workload has of itself.
        seed: The same seed gives the same jobs.
        max_tokens: Shorten jobs that have more, prompt and output together, to this; both keep
            their shares.  None: leave them as they are.
        prompt_lengths, output_lengths: Of the workload "uniform".

    Raises:
        InvalidConfigError: There is no such workload.
    """
    if name not in WORKLOADS:
        raise InvalidConfigError(
            f"no workload is called {name!r}; expected one of {', '.join(WORKLOADS)}"
        )
    workload = WORKLOADS[name]
    make = even(prompt_lengths, output_lengths) if name == "uniform" else workload.make
    jobs = make(Draw(vocab_size, seed), num_requests or workload.num_requests)
    return jobs if max_tokens is None else [shortened(job, max_tokens) for job in jobs]


def shortened(job: Job, max_tokens: int) -> Job:
    """The job with at most `max_tokens` tokens, at least one of prompt and one of output."""
    if job.num_tokens <= max_tokens:
        return job
    num_prompt_tokens = max(1, len(job.prompt_token_ids) * max_tokens // job.num_tokens)
    return Job(job.prompt_token_ids[:num_prompt_tokens], max_tokens - num_prompt_tokens)


def a_little_of(jobs: Sequence[Job]) -> list[Job]:
    """To warm up with: what is only done once is done by then, and is not measured."""
    return [Job(job.prompt_token_ids, min(job.num_output_tokens, 8)) for job in jobs[:2]]


def check_fits(jobs: Sequence[Job], max_servable_tokens: int) -> None:
    """Refuse a workload of which a part could never be served.

    Raises:
        InvalidConfigError: With the size of the longest job and of what there is.
    """
    longest = max(job.num_tokens for job in jobs)
    if longest > max_servable_tokens:
        raise InvalidConfigError(
            f"the longest request of this workload has {longest} tokens, prompt and output "
            f"together, and model and block pool serve at most {max_servable_tokens}; shorten the "
            f"requests with --max-tokens {max_servable_tokens}, or take another workload, another "
            f"model or more blocks"
        )
