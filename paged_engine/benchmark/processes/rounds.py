"""Rounds in which each engine, in a fresh process, serves the same jobs.

A process lives for one turn, so nobody's idle threads or memory stand in another's way, and every
round measures a start as well.  A first start, which does not count, fills the caches: of files, of
compiled code, of converted models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from paged_engine.benchmark.processes.engines import NAIVE_FLOAT32, Engine
from paged_engine.benchmark.processes.worker_process import (
    MissingError,
    WorkerError,
    WorkerProcess,
)
from paged_engine.benchmark.processes.workers.protocol import Limits
from paged_engine.benchmark.workloads import Job

Tokens = list[list[int]]
WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What an engine came to.  One entry a round in each tuple.

    Attributes:
        version: Of the engine; None where it never got so far.
        first_token: Seconds from the start of the process to the first token.
        seconds: For all jobs.
        peak_memory: Bytes, from the start of the process to the end of the jobs.
        num_output_tokens: Of all jobs.
        num_jobs: How many there were.
        num_identical: Outputs equal to those of transformers in float32, in the round with the
            fewest; None where there is nothing to compare.
        failure: Why it gave up, if it did.
    """

    name: str
    version: str | None
    first_token: tuple[float, ...]
    seconds: tuple[float, ...]
    peak_memory: tuple[int, ...]
    num_output_tokens: int
    num_jobs: int
    num_identical: int | None = None
    failure: str | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """Output tokens a second, of each round."""
        return tuple(self.num_output_tokens / seconds for seconds in self.seconds)

    @property
    def median_rate(self) -> float:
        """Output tokens a second, in the middle of the rounds."""
        return median(self.rates)


@dataclass(slots=True)
class _Score:
    """An engine while the rounds go on."""

    engine: Engine
    version: str | None = None
    first_token: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_memory: list[int] = field(default_factory=list)
    outputs: list[Tokens] = field(default_factory=list)
    failure: str | None = None


def compare(
    engines: Sequence[Engine],
    start: Callable[[Engine], WorkerProcess],
    jobs: Sequence[Job],
    limits: Limits,
    num_rounds: int,
    *,
    say: Callable[[str], object],
) -> list[Measured]:
    """Let each engine serve all jobs in each round.

    Args:
        engines: In the order in which they take turns.  One that fails is out, the rest go on.
        start: Starts the worker of an engine.
        limits: For all of them alike; the mode is each one's own.
        say: Told what goes on.
    """
    scores = [_Score(engine) for engine in engines]
    for score in scores:
        say(f"first start of {score.engine.name}")
        with _excused(score, say), start(score.engine) as worker:
            score.version = _load(worker, score.engine, jobs, limits)
    for number in range(1, num_rounds + 1):
        for score in scores:
            if score.failure is None:
                say(f"round {number} of {num_rounds}, {score.engine.name}")
                with _excused(score, say), start(score.engine) as worker:
                    _take_turn(worker, score, jobs, limits)
    expected = _expected(scores, start, jobs, limits, say)
    return [_measured(score, jobs, expected) for score in scores]


def _load(worker: WorkerProcess, engine: Engine, jobs: Sequence[Job], limits: Limits) -> str:
    asked = asdict(replace(limits, mode=engine.mode, dtype=engine.dtype or limits.dtype))
    first = _message([replace(jobs[0], num_output_tokens=1)])[0]
    return str(worker.ask({"do": "load", "limits": asked, "first": first}, "ready")["version"])


def _take_turn(worker: WorkerProcess, score: _Score, jobs: Sequence[Job], limits: Limits) -> None:
    _load(worker, score.engine, jobs, limits)
    first_token = worker.age
    few = [
        replace(job, num_output_tokens=min(job.num_output_tokens, WARM_UP_TOKENS)) for job in jobs
    ]
    _run(worker, few)
    seconds, tokens = _run(worker, jobs)
    score.peak_memory.append(worker.peak_memory())
    score.first_token.append(first_token)
    score.seconds.append(seconds)
    score.outputs.append(tokens)


def _run(worker: WorkerProcess, jobs: Sequence[Job]) -> tuple[float, Tokens]:
    """Seconds and tokens.

    Raises:
        WorkerError: Also if it served less, or more, than was asked for.
    """
    answer = worker.ask({"do": "run", "jobs": _message(jobs)}, "done")
    tokens: Tokens = answer["tokens"]
    if len(tokens) != len(jobs):
        raise WorkerError(f"it gave {len(tokens)} outputs; expected {len(jobs)}")
    for number, (output, job) in enumerate(zip(tokens, jobs, strict=True)):
        if len(output) != job.num_output_tokens:
            raise WorkerError(
                f"its output {number} has {len(output)} tokens; expected {job.num_output_tokens}"
            )
    return float(answer["seconds"]), tokens


def _message(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [
        {"prompt": list(job.prompt_token_ids), "num_tokens": job.num_output_tokens} for job in jobs
    ]


@contextmanager
def _excused(score: _Score, say: Callable[[str], object]) -> Iterator[None]:
    """An engine that fails must not end the others."""
    try:
        yield
    except WorkerError as error:
        score.failure = str(error)
        if isinstance(error, MissingError) and score.engine.install:
            score.failure += (
                f"; install it ({score.engine.install}) into an environment of its own, and give "
                f"--peer-python {score.engine.family}=path/to/python"
            )
        say(f"{score.engine.name}: {score.failure}")
        if error.log is not None:
            say(f"all that it printed is in {error.log}")


def _expected(
    scores: Sequence[_Score],
    start: Callable[[Engine], WorkerProcess],
    jobs: Sequence[Job],
    limits: Limits,
    say: Callable[[str], object],
) -> Tokens | None:
    """What transformers generates in float32, one by one: from its turn, or from one more run."""
    if not any(score.outputs for score in scores):
        return None
    for score in scores:
        in_float32 = (score.engine.dtype or limits.dtype) == "float32"
        if in_float32 and score.engine.mode == NAIVE_FLOAT32.mode and score.outputs:
            return score.outputs[0]
    say("the tokens that are right, from transformers in float32")
    tokens: Tokens | None = None
    with _excused(_Score(NAIVE_FLOAT32), say), start(NAIVE_FLOAT32) as worker:
        _load(worker, NAIVE_FLOAT32, jobs, limits)
        tokens = _run(worker, jobs)[1]
    return tokens


def _measured(score: _Score, jobs: Sequence[Job], expected: Tokens | None) -> Measured:
    identical = None
    if expected is not None and score.outputs:
        identical = min(
            sum(a == b for a, b in zip(tokens, expected, strict=True)) for tokens in score.outputs
        )
    return Measured(
        name=score.engine.name,
        version=score.version,
        first_token=tuple(score.first_token),
        seconds=tuple(score.seconds),
        peak_memory=tuple(score.peak_memory),
        num_output_tokens=sum(job.num_output_tokens for job in jobs),
        num_jobs=len(jobs),
        num_identical=identical,
        failure=score.failure,
    )
