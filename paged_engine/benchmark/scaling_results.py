"""What `bench --scaling` found: points against their floors, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paged_engine.benchmark.comparison import columns
from paged_engine.benchmark.machine import Machine
from paged_engine.benchmark.scaling_plan import Plan
from paged_engine.benchmark.scaling_roof import ModelCost, Range, Roof
from paged_engine.benchmark.scaling_steps import Sample

SCHEMA_VERSION = 1
DISTURBED = (
    "a share is above 100%: the machine was disturbed whenever its best was measured; measure again"
)
FIRST_COLUMN = {  # of the series' tables
    "batch": "requests decoding",
    "context": "context",
    "prefill": "prompt",
    "block-size": "block size",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measured point of a series, and the least that it could take here.

    Attributes:
        series: "batch", "context", "prefill" or "block-size".
        value: What the series is drawn against.
        num_tokens: That came of it.
        seconds: Of a decode step, or of a whole prompt.
        num_bytes, num_flops: What that moves and computes at least.
        memory_floor, compute_floor: The seconds that each alone takes at the machine's best.
        floor: The greater of the two, step by step; a step cannot take less.
    """

    series: str
    value: int
    num_tokens: int
    seconds: Range
    num_bytes: int
    num_flops: int
    memory_floor: float
    compute_floor: float
    floor: float

    @property
    def rate(self) -> Range:
        """Tokens a second."""
        s, n = self.seconds, self.num_tokens
        return Range(n / s.median, n / s.highest, n / s.lowest)

    @property
    def best_rate(self) -> float:
        """Tokens a second at the floor."""
        return self.num_tokens / self.floor

    @property
    def share(self) -> float:
        """Of what the machine could do at best."""
        return self.floor / self.seconds.median

    @property
    def bound(self) -> str:
        """Which floor is the higher one."""
        return "memory" if self.memory_floor >= self.compute_floor else "compute"


@dataclass(frozen=True, slots=True)
class WaitingPoint:
    """Seconds that a step of the scheduler takes with so many in line."""

    num_waiting: int
    seconds: Range


@dataclass(frozen=True, slots=True)
class Scaling:
    """All of a run.

    Attributes:
        model, dtype, device: None where only the scheduler was measured; so are roof and cost.
        block_size, budget: Of all series that do not say otherwise.
    """

    created: str
    machine: Machine
    num_rounds: int
    plan: Plan
    block_size: int
    budget: int
    model: str | None = None
    dtype: str | None = None
    device: str | None = None
    roof: Roof | None = None
    cost: ModelCost | None = None
    points: tuple[Point, ...] = ()
    waiting: tuple[WaitingPoint, ...] = ()

    def of(self, series: str) -> list[Point]:
        """The points of one series, in its order."""
        return [point for point in self.points if point.series == series]

    def table(self) -> str:
        """For people."""
        rounds = f"{self.num_rounds} rounds in turns" if self.num_rounds > 1 else "one round"
        parts = [f"on {self.machine.line()}; {rounds}: median, lowest to highest"]
        if (noise := self.machine.noise()) is not None:
            parts.append(noise)
        if self.roof is not None and self.cost is not None:
            parts[0] = f"{self.model}, {self.dtype}, {parts[0]}"
            parts += ["", *self._roof_lines(self.roof, self.cost)]
        for series in FIRST_COLUMN:
            if found := self.of(series):
                parts += ["", self._heading(series), _series_table(series, found)]
        if self.waiting:
            parts += ["", "a step of the scheduler alone, while others wait in line"]
            parts.append(_waiting_table(self.waiting))
        if any(point.share > 1 for point in self.points):
            parts += ["", DISTURBED]
        parts += [f"left out: {words}" for words in self.plan.left_out]
        return "\n".join(parts)

    def write(self, path: Path) -> None:
        """As JSON; what follows from the measured numbers stands beside them."""
        values = {"schema": SCHEMA_VERSION, **asdict(self)}
        for point, entry in zip(self.points, values["points"], strict=True):
            entry["tokens_per_second"] = asdict(point.rate)
            entry["share_of_best"] = point.share
            entry["bound"] = point.bound
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def _roof_lines(self, roof: Roof, cost: ModelCost) -> list[str]:
        band, gemm = roof.bandwidth, roof.gemm
        return [
            f"memory read     {_range(band, 1e9)} GB/s",
            f"matrix product  {_range(gemm, 1e9)} GFLOP/s, {self.dtype}",
            f"a decode step reads {cost.weight_bytes / 1e6:.1f} MB of weights and "
            f"{cost.kv_bytes / 1e3:.1f} kB a token of context",
        ]

    def _heading(self, series: str) -> str:
        plan = self.plan
        return {
            "batch": f"decoding with {plan.batch_context} tokens of context each",
            "context": f"decoding, batch {plan.context_batch}",
            "prefill": f"one prompt alone, at most {self.budget} tokens a step",
            "block-size": f"decoding, batch {plan.block_batch}, context {plan.batch_context}",
        }[series]


def point_of(
    series: str, value: int, samples: Sequence[Sample], roof: Roof, cost: ModelCost
) -> Point:
    """What a point's rounds came to, against the roof of the same run."""
    memory = [cost.num_bytes(step) / roof.bandwidth.highest for step in samples[0].steps]
    compute = [cost.num_flops(step) / roof.gemm.highest for step in samples[0].steps]
    return Point(
        series=series,
        value=value,
        num_tokens=samples[0].num_tokens,
        seconds=Range.of([sample.seconds for sample in samples]),
        num_bytes=sum(map(cost.num_bytes, samples[0].steps)),
        num_flops=sum(map(cost.num_flops, samples[0].steps)),
        memory_floor=sum(memory),
        compute_floor=sum(compute),
        floor=sum(map(max, memory, compute)),
    )


def _series_table(series: str, points: Sequence[Point]) -> str:
    rows = [
        (
            FIRST_COLUMN[series],
            "ms",
            "tokens/s",
            "lowest to highest",
            "at best",
            "share",
            "bound by",
        )
    ]
    for point in points:
        rate = point.rate
        rows.append(
            (
                f"{point.value:,}",
                f"{1e3 * point.seconds.median:.2f}",
                f"{rate.median:.1f}",
                f"{rate.lowest:.1f} to {rate.highest:.1f}",
                f"{point.best_rate:.1f}",
                f"{point.share:.0%}",
                point.bound,
            )
        )
    return columns(rows)


def _waiting_table(points: Sequence[WaitingPoint]) -> str:
    rows = [("waiting", "µs a step", "lowest to highest")]
    for point in points:
        s = point.seconds
        spread = f"{1e6 * s.lowest:.1f} to {1e6 * s.highest:.1f}"
        rows.append((f"{point.num_waiting:,}", f"{1e6 * s.median:.1f}", spread))
    return columns(rows)


def _range(values: Range, unit: float) -> str:
    low, high = values.lowest / unit, values.highest / unit
    return f"{values.median / unit:.1f} ({low:.1f} to {high:.1f})"
