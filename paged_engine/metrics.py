"""How well a run went, computed from its events alone.

Names and definitions are the field's.  vLLM exports the same quantities to Prometheus; its name
stands behind each.  Goodput is DistServe's (Zhong et al., OSDI 2024, arXiv 2401.09670).  All
times are in seconds of the engine's clock.  The log must begin at the run's start: of events
that were dropped (`max_events`) nothing can be computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from paged_engine import events as ev
from paged_engine.replay import EngineState, forget_finished, reduce


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """One sequence; a request with `n` samples has n of these.  None: it did not get so far.

    Attributes:
        finish_reason: The value of its final status; None while it is being served.
        queue_time: From queued to first admitted (vllm:request_queue_time_seconds).
        ttft: Time to first token, from queued (vllm:time_to_first_token_seconds).
        tpot: Time per output token: mean over the tokens after the first
            (vllm:request_time_per_output_token_seconds).
        itl: Inter-token latencies: the time between each two tokens in a row
            (vllm:inter_token_latency_seconds).
        e2e: From queued to its end (vllm:e2e_request_latency_seconds).
        num_prompt_tokens, num_output_tokens: (vllm:request_prompt_tokens,
            vllm:request_generation_tokens).
        num_cached_tokens: Prompt tokens that its first admission took from the cache.
        num_preemptions: How often it lost its blocks.
    """

    request_id: str
    finish_reason: str | None
    queue_time: float | None
    ttft: float | None
    tpot: float | None
    itl: tuple[float, ...]
    e2e: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int

    def meets(self, ttft: float, tpot: float) -> bool:
        """Whether it ended by itself and met both targets; a single token has no TPOT to miss."""
        return (
            self.finish_reason in ("stop", "length")
            and self.ttft is not None
            and self.ttft <= ttft
            and (self.tpot is None or self.tpot <= tpot)
        )


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One step that did not fail.

    Attributes:
        began, ended: When.
        batch_size: Sequences that it computed.
        num_prefills: How many of them computed tokens of their prompt.
        num_prefill_tokens, num_decode_tokens: Computed tokens at positions of the prompt, and
            behind it.
        num_new_tokens: Tokens that came of it.
        block_use: Used / usable blocks meanwhile (vllm:kv_cache_usage_perc).
        fragmentation: The share of slots in used blocks that hold no token even when its own
            are computed (internal fragmentation; Kwon et al., arXiv 2309.06180).
    """

    began: float
    ended: float
    batch_size: int
    num_prefills: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_new_tokens: int
    block_use: float
    fragmentation: float


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """A whole run.  Steps that failed count in `duration`, `num_steps` and `waste` only.

    Attributes:
        requests: In the order in which they were queued.
        steps: Those that did not fail.
        duration: From the first request queued to the last token.
        num_steps: Steps begun and ended, the failed ones included.
        num_preemptions: (vllm:num_preemptions_total).
        prefix_hit_rate: Cached tokens / tokens of the prompt, over first admissions
            (vllm:prefix_cache_hits_total / vllm:prefix_cache_queries_total).
        waste: Share of the scheduled tokens that had been scheduled before: computed again
            after a preemption or a failed step.
    """

    requests: tuple[RequestMetrics, ...]
    steps: tuple[StepMetrics, ...]
    duration: float
    num_steps: int
    num_preemptions: int
    prefix_hit_rate: float
    waste: float

    @property
    def num_prefill_tokens(self) -> int:
        """Computed at positions of the prompt (vllm:prompt_tokens_total), twice if done twice."""
        return sum(step.num_prefill_tokens for step in self.steps)

    @property
    def num_decode_tokens(self) -> int:
        """Computed behind the prompt; what is computed twice counts twice."""
        return sum(step.num_decode_tokens for step in self.steps)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of each step."""
        return tuple(step.batch_size for step in self.steps)

    @property
    def block_use(self) -> tuple[float, ...]:
        """Of each step."""
        return tuple(step.block_use for step in self.steps)

    @property
    def fragmentation(self) -> tuple[float, ...]:
        """Of each step."""
        return tuple(step.fragmentation for step in self.steps)

    @property
    def num_output_tokens(self) -> int:
        """(vllm:generation_tokens_total)."""
        return sum(r.num_output_tokens for r in self.requests)

    @property
    def output_throughput(self) -> float:
        """Output tokens a second."""
        return _ratio(self.num_output_tokens, self.duration)

    @property
    def total_throughput(self) -> float:
        """Tokens a second: the prompts of requests that got a token, and all output."""
        prompts = sum(r.num_prompt_tokens for r in self.requests if r.num_output_tokens)
        return _ratio(prompts + self.num_output_tokens, self.duration)

    def percentile(self, name: Literal["ttft", "tpot", "itl"], percent: float) -> float | None:
        """Of that quantity over all requests, ITLs all together; None if there is no value."""
        if name == "itl":
            return percentile([gap for r in self.requests for gap in r.itl], percent)
        values = (getattr(r, name) for r in self.requests)
        return percentile([v for v in values if v is not None], percent)

    def goodput(self, ttft: float, tpot: float) -> float:
        """Requests a second that met both latency targets (DistServe)."""
        return _ratio(sum(r.meets(ttft, tpot) for r in self.requests), self.duration)

    def table(self) -> str:
        """All of it for people: one line a quantity, p50 and p99 where there are many values."""
        rows = [
            ("requests", str(len(self.requests))),
            ("steps", str(self.num_steps)),
            ("duration", f"{self.duration:.3f} s"),
            ("output throughput", f"{self.output_throughput:.1f} tokens/s"),
            ("total throughput", f"{self.total_throughput:.1f} tokens/s"),
            ("prefill tokens", str(self.num_prefill_tokens)),
            ("decode tokens", str(self.num_decode_tokens)),
            ("TTFT", self._p50_p99("ttft")),
            ("TPOT", self._p50_p99("tpot")),
            ("ITL", self._p50_p99("itl")),
            ("batch size", _mean_peak(self.batch_sizes, ".1f")),
            ("blocks used", _mean_peak(self.block_use, ".1%")),
            ("fragmentation", _mean_peak(self.fragmentation, ".1%")),
            ("prefix hit rate", f"{self.prefix_hit_rate:.1%}"),
            ("waste", f"{self.waste:.1%}"),
            ("preemptions", str(self.num_preemptions)),
        ]
        return "\n".join(f"{name:<19}{value}" for name, value in rows)

    def _p50_p99(self, name: Literal["ttft", "tpot", "itl"]) -> str:
        p50, p99 = self.percentile(name, 50), self.percentile(name, 99)
        return "none" if p50 is None else f"{p50:.3f} s p50, {p99:.3f} s p99"


@dataclass(slots=True)
class _Life:
    """The events of one sequence."""

    queued: ev.Queued
    admitted: list[ev.Admitted] = field(default_factory=list)
    scheduled: list[ev.Scheduled] = field(default_factory=list)
    preempted: list[ev.Preempted] = field(default_factory=list)
    token: list[ev.Token] = field(default_factory=list)
    finished: list[ev.Finished] = field(default_factory=list)
    aborted: list[ev.Aborted] = field(default_factory=list)

    def metrics(self) -> RequestMetrics:
        start, times = self.queued.time, [e.time for e in self.token]
        ends = [(e.time, e.reason) for e in self.finished] + [
            (e.time, "abort") for e in self.aborted
        ]
        return RequestMetrics(
            request_id=self.queued.request_id,
            finish_reason=ends[0][1] if ends else None,
            queue_time=self.admitted[0].time - start if self.admitted else None,
            ttft=times[0] - start if times else None,
            tpot=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
            itl=tuple(later - earlier for earlier, later in pairwise(times)),
            e2e=ends[0][0] - start if ends else None,
            num_prompt_tokens=len(self.queued.prompt_token_ids),
            num_output_tokens=len(times),
            num_cached_tokens=self.admitted[0].num_cached_tokens if self.admitted else 0,
            num_preemptions=len(self.preempted),
        )


def request_metrics(events: Iterable[ev.Event]) -> list[RequestMetrics]:
    """Each sequence of a log, in the order in which they were queued; ids may come again."""
    return [life.metrics() for life in _lives(events)]


def run_metrics(events: Iterable[ev.Event]) -> RunMetrics:
    """The whole of a log."""
    events = list(events)
    lives = _lives(events)
    requests = tuple(life.metrics() for life in lives)
    last = max((e.time for life in lives for e in life.token), default=0.0)
    looked_up = [r for r in requests if r.queue_time is not None]
    again = 0
    for life in lives:
        reached = 0
        for e in life.scheduled:
            end = e.start + e.num_tokens
            again += max(0, min(end, reached) - e.start)
            reached = max(end, reached)
    return RunMetrics(
        requests=requests,
        steps=tuple(_steps(events)),
        duration=max(0.0, last - lives[0].queued.time) if lives else 0.0,
        num_steps=sum(isinstance(e, ev.StepEnded) for e in events),
        num_preemptions=sum(r.num_preemptions for r in requests),
        prefix_hit_rate=_ratio(
            sum(r.num_cached_tokens for r in looked_up), sum(r.num_prompt_tokens for r in looked_up)
        ),
        waste=_ratio(again, sum(e.num_tokens for life in lives for e in life.scheduled)),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the two nearest of the sorted values, as NumPy's default; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def _lives(events: Iterable[ev.Event]) -> list[_Life]:
    lives: list[_Life] = []
    current: dict[str, _Life] = {}
    kinds = {"admitted", "scheduled", "preempted", "token", "finished", "aborted"}
    for event in events:
        if isinstance(event, ev.Queued):
            lives.append(_Life(event))
            current[event.request_id] = lives[-1]
        elif event.kind in kinds:
            getattr(current[event.request_id], event.kind).append(event)  # type: ignore[attr-defined]
    return lives


def _steps(events: Iterable[ev.Event]) -> Iterator[StepMetrics]:
    """Each step that did not fail."""
    state = EngineState()
    began = 0.0
    scheduled: list[ev.Scheduled] = []
    of_prompt: list[int] = []
    measured: tuple[float, float] | None = None
    num_new_tokens = 0
    for event in events:
        if isinstance(event, ev.StepBegan):
            began, scheduled, measured, num_new_tokens = event.time, [], None, 0
        elif isinstance(event, ev.Scheduled):
            scheduled.append(event)
        elif measured is None and (scheduled or isinstance(event, ev.StepEnded)):
            # all is scheduled, nothing freed yet
            measured = _use(state, {e.request_id: e.start + e.num_tokens for e in scheduled})
            of_prompt = [_num_of_prompt(state, e) for e in scheduled]
        num_new_tokens += isinstance(event, ev.Token)
        if isinstance(event, ev.StepEnded) and not event.failed and measured is not None:
            yield StepMetrics(
                began=began,
                ended=event.time,
                batch_size=len(scheduled),
                num_prefills=sum(number > 0 for number in of_prompt),
                num_prefill_tokens=sum(of_prompt),
                num_decode_tokens=sum(e.num_tokens for e in scheduled) - sum(of_prompt),
                num_new_tokens=num_new_tokens,
                block_use=measured[0],
                fragmentation=measured[1],
            )
        reduce(state, event)
        if isinstance(event, (ev.Finished, ev.Aborted)):
            forget_finished(state)


def _num_of_prompt(state: EngineState, event: ev.Scheduled) -> int:
    """How many of the tokens that a request computes are of its prompt."""
    num_prompt = len(state.requests[event.request_id].prompt_token_ids)
    return max(0, min(event.start + event.num_tokens, num_prompt) - event.start)


def _use(state: EngineState, ends: Mapping[str, int]) -> tuple[float, float]:
    """Used / usable blocks, and the share of their slots without a computed token."""
    filled: dict[int, int] = {}
    for request in state.requests.values():
        computed = ends.get(request.request_id, request.num_computed_tokens)
        for i, block_id in enumerate(request.block_table):
            filled[block_id] = min(max(computed - i * state.block_size, 0), state.block_size)
    num_slots = len(filled) * state.block_size
    return _ratio(len(filled), state.num_usable), _ratio(
        num_slots - sum(filled.values()), num_slots
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean_peak(values: Sequence[float], how: str) -> str:
    return f"{_ratio(sum(values), len(values)):{how}} mean, {max(values, default=0):{how}} peak"
