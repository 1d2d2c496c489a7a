"""Several that serve the same jobs, timed in turns.

Rounds alternate, so that whatever else the machine does meets all alike; what counts is the ratio
of the medians.  The tokens are compared too: a speed with other tokens is no speed.  In fp32 they
should be equal but where rounding decides between two candidates; in bfloat16 they part with the
batch size in every engine, and are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import PreTrainedModel

from paged_engine.benchmark.peers import Peer, Tokens
from paged_engine.benchmark.workloads import Job, a_little_of

REFERENCE = "naive"


@dataclass(frozen=True, slots=True)
class Parting:
    """Where an output first differs from the reference's.

    Attributes:
        job: Its number.
        position: Of the token, in the output.
        margin: How far apart the model's two best candidates are there.  Below 1e-4 fp32
            rounding decides, and either token is right.
    """

    job: int
    position: int
    margin: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What a peer came to.

    Attributes:
        seconds: Of each round.
        num_output_tokens: Of all jobs.
        num_jobs: How many there were.
        num_identical: Outputs equal to the reference's, in the round with the fewest; None where
            there was no reference.
        partings: Those that were not, in that round.
        failure: Why it gave up, if it did.
    """

    name: str
    seconds: tuple[float, ...]
    num_output_tokens: int
    num_jobs: int
    num_identical: int | None = None
    partings: tuple[Parting, ...] = ()
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
    """A peer while the rounds go on."""

    peer: Peer
    seconds: list[float] = field(default_factory=list)
    num_identical: int | None = None
    outputs: Tokens = field(default_factory=list)  # those of the round with the fewest identical
    failure: str | None = None


def compare(
    others: Sequence[Peer],
    ours: Peer,
    jobs: Sequence[Job],
    num_rounds: int,
    model: PreTrainedModel,
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Standing]:
    """Let each serve all jobs in each round.

    Args:
        others: In the order in which they take turns.  The one called "naive" is the reference.
            One that raises is out, and the rest go on.
        ours: Comes last in each round, and is warm already.  What it raises is raised.
        model: Which they all run; it is asked for the margins where outputs part.
        say: Told what goes on.
        clock: Gives the time in seconds.

    Returns:
        The others', in their order, and ours.
    """
    scores = [_Score(peer) for peer in [*others, ours]]
    for score in scores[:-1]:
        say(f"warming up {score.peer.name}")
        with _excused(score, ours, say):
            score.peer.run(a_little_of(jobs))
    expected: Tokens | None = None
    for number in range(1, num_rounds + 1):
        for score in scores:
            if score.failure is not None:
                continue
            turn = f"round {number} of {num_rounds}, {score.peer.name}"
            say(turn)
            began = clock()
            with _excused(score, ours, say):
                outputs = score.peer.run(jobs, _Teller(turn, len(jobs), say, clock))
                score.seconds.append(clock() - began)
                if score.peer.name == REFERENCE and expected is None:
                    expected = outputs  # those of its first round, for its own later ones too
                if expected is not None:
                    _count(score, outputs, expected)
    return [_standing(score, jobs, expected, model) for score in scores]


@contextmanager
def _excused(score: _Score, ours: Peer, say: Callable[[str], object]) -> Iterator[None]:
    """A peer raises what it likes, and must not end the others."""
    try:
        yield
    except Exception as error:
        if score.peer is ours:
            raise
        score.failure = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"{score.peer.name} failed: {score.failure}")


class _Teller:
    """Says every few seconds how far a turn is."""

    SECONDS = 10.0

    def __init__(
        self, turn: str, num_jobs: int, say: Callable[[str], object], clock: Callable[[], float]
    ) -> None:
        self._turn, self._num_jobs, self._say, self._clock = turn, num_jobs, say, clock
        self._last = clock()

    def __call__(self, number: int) -> None:
        if self._clock() - self._last >= self.SECONDS:
            self._last = self._clock()
            self._say(f"{self._turn}: {number} of {self._num_jobs} requests")


def _count(score: _Score, outputs: Tokens, expected: Tokens) -> None:
    same = sum(a == b for a, b in zip(outputs, expected, strict=True))
    if score.num_identical is None or same < score.num_identical:
        score.num_identical, score.outputs = same, outputs


def _standing(
    score: _Score, jobs: Sequence[Job], expected: Tokens | None, model: PreTrainedModel
) -> Standing:
    partings = []
    if score.num_identical is not None and expected is not None:
        for number, job in enumerate(jobs):
            ours, theirs = score.outputs[number], expected[number]
            if ours != theirs:
                partings.append(parting(model, number, job, ours, theirs))
    return Standing(
        name=score.peer.name,
        seconds=tuple(score.seconds),
        num_output_tokens=sum(job.num_output_tokens for job in jobs),
        num_jobs=len(jobs),
        num_identical=score.num_identical,
        partings=tuple(partings),
        failure=score.failure,
    )


@torch.inference_mode()
def parting(
    model: PreTrainedModel, number: int, job: Job, ours: Sequence[int], theirs: Sequence[int]
) -> Parting:
    """Where two outputs of a job part, and by how little the model preferred the other."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    known = torch.tensor([[*job.prompt_token_ids, *theirs[:place]]], device=model.device)
    best = model(known, use_cache=False).logits[0, -1].float().topk(2).values
    return Parting(number, place, float(best[0] - best[1]))


def table(standings: Sequence[Standing]) -> str:
    """The comparison for people; the last one is held against each of the others."""
    ours = standings[-1]
    rows = [("", "median tok/s", "lowest to highest", f"{ours.name} against it", "identical")]
    for standing in standings:
        rates = standing.rates
        if rates:
            ratio = f"{ours.median_rate / standing.median_rate:.2f} x"
            spread = f"{min(rates):.1f} to {max(rates):.1f}"
            same = standing.num_identical
            identical = "" if same is None else f"{same} of {standing.num_jobs}"
            rows.append((standing.name, f"{standing.median_rate:.1f}", spread, ratio, identical))
        else:
            rows.append((standing.name, "failed", "", "", ""))
    return "\n".join([columns(rows), *_remarks(standings)])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text: the first cells to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("   ".join([f"{name:<{widths[0]}}", *aligned]).rstrip())
    return "\n".join(lines)


def _remarks(standings: Sequence[Standing]) -> Iterator[str]:
    """What does not fit in the columns."""
    for standing in standings:
        if standing.failure is not None:
            rounds = len(standing.seconds)
            after = f" after {rounds} of the rounds" if rounds else ""
            yield f"{standing.name} failed{after}: {standing.failure}"
        if standing.partings:
            margin = max(parting.margin for parting in standing.partings)
            yield (
                f"where {standing.name} parts from {REFERENCE}, the model's two best candidates "
                f"are at most {margin:.2g} apart"
            )
