"""All that one run of the benchmark found, as one value: to a table, to JSON and back."""

from __future__ import annotations

import json
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from paged_engine.benchmark import comparison
from paged_engine.benchmark.comparison import Standing
from paged_engine.benchmark.machine import Machine
from paged_engine.benchmark.report import Report
from paged_engine.errors import PagedEngineError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Attributes:
        model: Its name; of a folder, the last part.
        dtype, device: Of weights and cache.
        workload: Its name.
        max_tokens: What longer requests were shortened to; None: none was.
        load: In words.
        rate: Arrivals a second, in an open loop.
        clients: How many, in a closed loop.
        num_rounds: How often everything was run.
    """

    model: str
    dtype: str
    device: str
    workload: str
    seed: int
    max_tokens: int | None
    load: str
    rate: float | None
    clients: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    prefix_caching: bool
    num_rounds: int


@dataclass(frozen=True, slots=True)
class Results:
    """What was asked for, on what, and what came of it.

    Attributes:
        created: When, in UTC, as ISO 8601 writes it.
        round: The number of the round that `report` tells of: the one in the middle, by speed.
        standings: paged_engine, the last, and those it was compared with.
    """

    created: str
    settings: Settings
    machine: Machine
    round: int
    report: Report
    standings: tuple[Standing, ...]

    def table(self) -> str:
        """For people."""
        s = self.settings
        shortened = "" if s.max_tokens is None else f", at most {s.max_tokens} tokens each"
        caching = "on" if s.prefix_caching else "off"
        parts = [
            f"{s.model}, {s.dtype}, on {self.machine.line()}",
            f"workload {s.workload}, seed {s.seed}{shortened}; {s.load}",
            f"at most {s.max_num_seqs} in a batch and {s.max_num_batched_tokens} tokens a step, "
            f"{s.num_blocks} blocks of {s.block_size}, prefix caching {caching}",
        ]
        if (noise := self.machine.noise()) is not None:
            parts.append(noise)
        parts += ["", self.report.table()]
        if s.num_rounds > 1:
            parts[-1] += f"\n{'':<20}(all of round {self.round} of {s.num_rounds}, the median one)"
        if len(self.standings) > 1 or s.num_rounds > 1:
            parts += ["", comparison.table(self.standings)]
        return "\n".join(parts)

    def write(self, path: Path) -> None:
        """As JSON."""
        values = {"schema": SCHEMA_VERSION, **asdict(self)}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """What `Results.write` wrote.

    Raises:
        PagedEngineError: The file is something else, or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("schema")
        if found != SCHEMA_VERSION:
            raise PagedEngineError(
                f"{path.name} has schema version {found}; expected {SCHEMA_VERSION}: run the "
                f"benchmark again"
            )
        results: Results = _build(Results, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PagedEngineError(
            f"{path.name} holds no results ({type(error).__name__}: {error}); expected a file "
            f"that the benchmark wrote with --json"
        ) from error
    return results


def _build(wanted: Any, value: Any) -> Any:
    """A value of the wanted type, from what JSON made of it."""
    if is_dataclass(wanted) and isinstance(wanted, type):
        hints = get_type_hints(wanted)
        return wanted(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(wanted)})
    if get_origin(wanted) in (types.UnionType, Union):
        (inner,) = (kind for kind in get_args(wanted) if kind is not type(None))
        return None if value is None else _build(inner, value)
    if get_origin(wanted) is tuple:
        return tuple(_build(get_args(wanted)[0], item) for item in value)
    return value
