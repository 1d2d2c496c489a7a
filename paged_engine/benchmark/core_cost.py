"""What the core itself costs a decode step: all of the engine but the model and the sampling.

    python -m paged_engine.benchmark.core_cost

The engine is the real one, with its event log on.  The model is none: it hands out the same
logits at every step.  Its time and that of the sampler are taken apart and left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import torch

from paged_engine import engine_core
from paged_engine.batch import Batch
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.request import SamplingParams

CONTEXT = 256  # tokens in the cache of each request, about
BLOCK_SIZE = 16
WARM_UP = 5
STEPS = 40
VOCAB = 128


class Stopwatch:
    """Adds up, by name, the seconds that this thread computes in the functions that it wraps.

    Not the seconds that pass: on a machine that others use too they say little.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed under `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return timed

    def take(self) -> dict[str, float]:
        """What was spent since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class NoModel:
    """A `ModelRunner` that computes nothing."""

    kv_shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=1)
    dtype = torch.float32
    device = torch.device("cpu")
    vocab_size = VOCAB
    max_model_len = 4 * CONTEXT
    eos_token_ids: frozenset[int] = frozenset()

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        return torch.zeros(batch.num_seqs, VOCAB)


@dataclass(frozen=True, slots=True)
class CoreCost:
    """Median seconds of a decode step of `batch_size` requests, by part."""

    batch_size: int
    schedule: float
    pack: float
    update: float
    rest: float  # events, outputs, and what lies between

    @property
    def total(self) -> float:
        return self.schedule + self.pack + self.update + self.rest


def measure(batch_size: int, *, record_events: bool = True, steps: int = STEPS) -> CoreCost:
    """Decode with `batch_size` requests of about `CONTEXT` tokens each."""
    per_request = (CONTEXT + WARM_UP + steps) // BLOCK_SIZE + 2
    config = EngineConfig(
        block_size=BLOCK_SIZE,
        num_blocks=batch_size * per_request,
        max_num_seqs=batch_size,
        max_num_batched_tokens=batch_size * CONTEXT,
        record_events=record_events,
    )
    watch = Stopwatch()
    model = NoModel()
    model.forward = watch.wrap("model", model.forward)  # type: ignore[method-assign]
    engine = ContinuousEngine(model, config=config)
    scheduler: Any = engine.scheduler
    scheduler.schedule = watch.wrap("schedule", scheduler.schedule)
    scheduler.update = watch.wrap("update", scheduler.update)
    core: Any = engine_core
    patched: dict[str, Any] = {
        "pack": watch.wrap("pack", core.pack),
        "sample": watch.wrap("sample", core.sample),
        "usable_rows": watch.wrap("sample", core.usable_rows),
    }
    params = SamplingParams(max_tokens=WARM_UP + steps + 2)
    parts: list[dict[str, float]] = []
    with mock.patch.multiple(core, **patched):
        for i in range(batch_size):  # all different, so that nothing is shared
            prompt = [i % VOCAB, i // VOCAB, *(t % VOCAB for t in range(CONTEXT - 2))]
            engine.add_request(prompt, params)
        for _ in range(1 + WARM_UP):  # the prompts, then some steps that do not count
            engine.step()
        for _ in range(steps):
            watch.take()
            watch.wrap("step", engine.step)()
            parts.append(watch.take())
    for part in parts:
        known = ("model", "sample", "schedule", "pack", "update")
        part["rest"] = part["step"] - sum(part[name] for name in known)

    def typical(name: str) -> float:
        return median(part[name] for part in parts)

    return CoreCost(
        batch_size, typical("schedule"), typical("pack"), typical("update"), typical("rest")
    )


def table(costs: Sequence[CoreCost]) -> str:
    """The costs in milliseconds, one line a batch size."""
    lines = ["batch   core    schedule  pack    update  events and outputs   (ms a decode step)"]
    for cost in costs:
        parts = (cost.total, cost.schedule, cost.pack, cost.update, cost.rest)
        core, schedule, pack, update, rest = (f"{1000 * seconds:.3f}" for seconds in parts)
        lines.append(f"{cost.batch_size:<8}{core:<8}{schedule:<10}{pack:<8}{update:<8}{rest}")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(table([measure(batch_size) for batch_size in (1, 32, 256)]))


if __name__ == "__main__":
    main()
