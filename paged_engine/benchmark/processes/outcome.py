"""What a comparison side by side came to, as one value: to a table and to JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from paged_engine.benchmark.comparison import columns
from paged_engine.benchmark.machine import Machine
from paged_engine.benchmark.processes.rounds import Measured
from paged_engine.benchmark.processes.workers.protocol import Limits

SCHEMA = "peers 1"
HEADINGS = (
    *("", "version", "median tok/s", "lowest to highest", "paged_engine against it"),
    *("first token", "peak memory", "as in float32"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was asked for, on what, and what came of it.

    Attributes:
        created: When, in UTC, as ISO 8601 writes it.
        model: Its name; of a folder, the last part.
        workload, seed, max_tokens: As in `results.Settings`.
        limits: What all kept to, without the folders of this machine.
        measured: Each engine; paged_engine is the last.
    """

    created: str
    model: str
    workload: str
    seed: int
    max_tokens: int | None
    num_rounds: int
    machine: Machine
    limits: Limits
    measured: tuple[Measured, ...]

    def table(self) -> str:
        """For people."""
        limits, some = self.limits, self.measured[0]
        shortened = "" if self.max_tokens is None else f", at most {self.max_tokens} tokens each"
        lines = [
            f"{self.model}, {limits.dtype}, on {self.machine.line()}",
            f"workload {self.workload}, seed {self.seed}{shortened}: {some.num_jobs} requests at "
            f"once, {some.num_output_tokens} output tokens; rounds: {self.num_rounds}",
            f"for all: {limits.threads} threads, at most {limits.max_num_seqs} in a batch, "
            f"{limits.max_num_batched_tokens} tokens a step and {limits.max_model_len} a request, "
            f"a KV cache for {limits.num_kv_tokens} tokens, prefix caching off",
        ]
        if (noise := self.machine.noise()) is not None:
            lines.append(noise)
        lines += ["", columns([HEADINGS, *map(self._row, self.measured)])]
        return "\n".join([*lines, *_remarks(self.measured)])

    def _row(self, one: Measured) -> Sequence[str]:
        if not one.seconds:
            return (one.name, one.version or "", "could not run", *[""] * 5)
        ours, rates = self.measured[-1], one.rates
        ratio = f"{ours.median_rate / one.median_rate:.2f} x" if ours.seconds else ""
        same = "" if one.num_identical is None else f"{one.num_identical} of {one.num_jobs}"
        return (
            one.name,
            one.version or "",
            f"{one.median_rate:.1f}",
            f"{min(rates):.1f} to {max(rates):.1f}",
            ratio,
            f"{median(one.first_token):.1f} s",
            f"{max(one.peak_memory) / 1e6:.0f} MB",
            same,
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        values = {"schema": SCHEMA, **asdict(self)}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _remarks(measured: Sequence[Measured]) -> Iterator[str]:
    """What does not fit in the columns."""
    for one in measured:
        if one.failure is not None:
            rounds = len(one.seconds)
            after = f" after {rounds} of the rounds" if rounds else ""
            yield f"{one.name} could not run{after}: {one.failure}"
