"""What a run comes to: the numbers, from its events and from what the clients saw.

The first lines are those that the engine this project began from printed of itself: size and time
of the prefill, total time, tokens, tokens a second, decode steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from paged_engine.benchmark.load import Answer, as_clients_saw
from paged_engine.events import Event
from paged_engine.metrics import RunMetrics, percentile, run_metrics


@dataclass(frozen=True, slots=True)
class Targets:
    """Latencies that a request must keep to count as good, in seconds.

    The defaults are those of MLPerf Inference for Llama 2 70B in its server scenario.
    """

    ttft: float = 2.0
    tpot: float = 0.2


@dataclass(frozen=True, slots=True)
class Spread:
    """Two percentiles, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Level:
    """Mean over the steps, and the highest of them."""

    mean: float
    peak: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One entry a step.

    Attributes:
        began, ended: Seconds since the first request was due.
        batch_size: Sequences that the step computed.
        block_use: Used / usable blocks.
        num_new_tokens: Tokens that came of it.
    """

    began: tuple[float, ...]
    ended: tuple[float, ...]
    batch_size: tuple[int, ...]
    block_use: tuple[float, ...]
    num_new_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One run.  Latencies count from when a request was due; None: no request has that one.

    Attributes:
        total_time: From the first request due to the last token.
        tokens_per_second: Of output.
        num_steps: Those that did not fail.  A step may be both of the following.
        num_prefill_steps: Steps that computed tokens of a prompt.
        prefill_time: What these took, decoding beside the prompts included.
        prefill_batch: How many sequences had tokens of their prompt computed, in these.
        num_decode_steps: Steps that computed tokens behind a prompt.
        queue_time: From due to first admitted.
        submit_delay: From due to handed to the engine: the wait for a step to end.
        goodput: Requests a second that met both targets (Zhong et al., arXiv 2401.09670).
        num_good: How many did.
        block_use: Used / usable blocks.
        fragmentation: Share of the slots in used blocks that hold no token.
        num_cached_tokens: Prompt tokens that were found in the cache at admission.
        prefix_hit_rate: The same as a share of all tokens of prompts.
        waste: Share of the tokens that were computed for the second time, after a preemption.
    """

    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    total_time: float
    tokens_per_second: float
    num_steps: int
    num_prefill_steps: int
    prefill_time: float
    prefill_batch: Level
    num_decode_steps: int
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    queue_time: Spread | None
    submit_delay: Spread | None
    targets: Targets
    goodput: float
    num_good: int
    batch_size: Level
    block_use: Level
    fragmentation: Level
    num_preemptions: int
    num_cached_tokens: int
    prefix_hit_rate: float
    waste: float
    timeline: Timeline

    def table(self) -> str:
        """For people: one line a quantity."""
        good = f"{self.num_good} of {self.num_requests} requests"
        rows = [
            ("requests", f"{self.num_requests}"),
            ("prompt tokens", f"{self.num_prompt_tokens}"),
            ("tokens generated", f"{self.num_output_tokens}"),
            ("total time", f"{self.total_time:.3f} s"),
            ("tokens a second", f"{self.tokens_per_second:.2f}"),
            ("steps", f"{self.num_steps}"),
            ("prefill steps", f"{self.num_prefill_steps}"),
            ("prefill time", f"{self.prefill_time:.3f} s, with the decoding beside it"),
            ("prefill batch size", _level(self.prefill_batch, ".1f")),
            ("decode steps", f"{self.num_decode_steps}"),
            ("TTFT", _spread(self.ttft)),
            ("TPOT", _spread(self.tpot)),
            ("ITL", _spread(self.itl)),
            ("end to end", _spread(self.e2e)),
            ("waiting in line", _spread(self.queue_time)),
            ("waiting for a step", _spread(self.submit_delay)),
            ("goodput", f"{self.goodput:.2f} requests/s, {good}"),
            ("", f"(TTFT at most {self.targets.ttft:g} s, TPOT at most {self.targets.tpot:g} s)"),
            ("batch size", _level(self.batch_size, ".1f")),
            ("blocks used", _level(self.block_use, ".1%")),
            ("fragmentation", _level(self.fragmentation, ".1%")),
            ("preemptions", f"{self.num_preemptions}, {self.waste:.1%} of the tokens twice"),
            ("prefix hits", f"{self.num_cached_tokens} tokens, {self.prefix_hit_rate:.1%}"),
        ]
        return "\n".join(f"{name:<20}{value}" for name, value in rows)


def make_report(
    events: Iterable[Event], answers: Sequence[Answer], targets: Targets = Targets()
) -> Report:
    """The numbers of a run.

    Args:
        events: The whole log of an engine that served nothing else.
        answers: What `drive` gave back.
        targets: What counts as good.
    """
    run = run_metrics(as_clients_saw(events, answers))
    start = answers[0].due
    prefills = [step for step in run.steps if step.num_prefill_tokens]
    return Report(
        num_requests=len(run.requests),
        num_prompt_tokens=sum(r.num_prompt_tokens for r in run.requests),
        num_output_tokens=run.num_output_tokens,
        total_time=run.duration,
        tokens_per_second=run.output_throughput,
        num_steps=len(run.steps),
        num_prefill_steps=len(prefills),
        prefill_time=sum(step.ended - step.began for step in prefills),
        prefill_batch=_level_of([step.num_prefills for step in prefills]),
        num_decode_steps=sum(step.num_decode_tokens > 0 for step in run.steps),
        ttft=_spread_of(r.ttft for r in run.requests),
        tpot=_spread_of(r.tpot for r in run.requests),
        itl=_spread_of(gap for r in run.requests for gap in r.itl),
        e2e=_spread_of(r.e2e for r in run.requests),
        queue_time=_spread_of(r.queue_time for r in run.requests),
        submit_delay=_spread_of(answer.submitted - answer.due for answer in answers),
        targets=targets,
        goodput=run.goodput(targets.ttft, targets.tpot),
        num_good=sum(r.meets(targets.ttft, targets.tpot) for r in run.requests),
        batch_size=_level_of(run.batch_sizes),
        block_use=_level_of(run.block_use),
        fragmentation=_level_of(run.fragmentation),
        num_preemptions=run.num_preemptions,
        num_cached_tokens=sum(r.num_cached_tokens for r in run.requests),
        prefix_hit_rate=run.prefix_hit_rate,
        waste=run.waste,
        timeline=_timeline(run, start),
    )


def _timeline(run: RunMetrics, start: float) -> Timeline:
    return Timeline(
        began=tuple(step.began - start for step in run.steps),
        ended=tuple(step.ended - start for step in run.steps),
        batch_size=run.batch_sizes,
        block_use=run.block_use,
        num_new_tokens=tuple(step.num_new_tokens for step in run.steps),
    )


def _spread_of(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    p50, p99 = percentile(known, 50), percentile(known, 99)
    return None if p50 is None or p99 is None else Spread(p50, p99)


def _level_of(values: Sequence[float]) -> Level:
    return Level(fmean(values), max(values)) if values else Level(0.0, 0.0)


def _spread(spread: Spread | None) -> str:
    return "none" if spread is None else f"{spread.p50:.3f} s p50, {spread.p99:.3f} s p99"


def _level(level: Level, how: str) -> str:
    return f"{level.mean:{how}} mean, {level.peak:{how}} peak"
