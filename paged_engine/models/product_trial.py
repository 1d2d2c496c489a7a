"""Which way of multiplying is the fastest on this machine: it is tried, once, and remembered.

No rule foretells it.  On the same cores one library wins where the processor has units for small
matrices and loses where a hypervisor hides them, wins in one precision and loses in the other.  So
all ways multiply in turns, for a fraction of a second, and the answer lies beside the compiled
kernels, in a file that may be read and deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch


class Linear(Protocol):
    """A product with weights that it holds."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`[T, in]` to `[T, out]`, both dense and of the type of the weights.

        Args:
            x: What is multiplied.
            out: Where the result may be put; it may as well be elsewhere.
        """


Pack = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""A weight `[out, in]` and a bias `[out]`, or None, laid out for one way of multiplying."""

# One request that decodes, a full batch that does, and a prompt.
NUM_TOKENS = (1, 32, 256)
# Matrices as in small models, where a call's own cost counts, too; together they are too large for
# the caches of most processors, as the weights of a model are.
WEIGHTS = (8, 1024, 1024)
TRIES = 5
# A way that takes so many times as long as the best is not tried with more tokens.
HOPELESS = 3.0


def fastest_way(
    ways: Mapping[str, Pack],
    dtype: torch.dtype,
    folder: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The name of the way that is fastest here.

    Args:
        ways: By name; at least one.
        dtype: Of weights and tokens.
        folder: Where the answer is looked up and kept.  Where nothing can be written, it is tried
            again by the next process.
        clock: In seconds.
    """
    if len(ways) == 1:
        return next(iter(ways))
    file = folder / f"products-{_circumstances(ways, dtype)}.json"
    if (known := _remembered(file)) is not None and known in ways:
        return known
    times = _try_all(ways, dtype, clock)
    fastest = min(times, key=times.__getitem__)
    _remember(file, fastest, times)
    return fastest


@torch.inference_mode()
def _try_all(
    ways: Mapping[str, Pack], dtype: torch.dtype, clock: Callable[[], float]
) -> dict[str, float]:
    """The geometric mean of each way's times, in seconds; a hopeless one's is infinite."""
    weights = torch.linspace(-1, 1, math.prod(WEIGHTS)).to(dtype).view(WEIGHTS)
    packed = {name: [pack(weight, None) for weight in weights] for name, pack in ways.items()}
    logarithms = dict.fromkeys(ways, 0.0)
    for count in NUM_TOKENS:
        x = torch.ones(count, WEIGHTS[2], dtype=dtype)
        best = dict.fromkeys(packed, math.inf)
        for _ in range(TRIES):
            for name, products in packed.items():  # in turns: a neighbour disturbs all of them
                began = clock()
                for multiply in products:
                    multiply(x)
                best[name] = min(best[name], clock() - began)
        for name, seconds in best.items():
            logarithms[name] += math.log(max(seconds, 1e-9))
            if seconds > HOPELESS * min(best.values()):
                del packed[name]
    return {
        name: math.exp(logarithms[name] / len(NUM_TOKENS)) if name in packed else math.inf
        for name in ways
    }


def _remembered(file: Path) -> str | None:
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
        return str(answer["fastest"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is tried again
        return None


def _remember(file: Path, fastest: str, times: Mapping[str, float]) -> None:
    milliseconds = {
        name: round(seconds * 1e3, 3) for name, seconds in times.items() if seconds < math.inf
    }
    answer = {"fastest": fastest, "milliseconds": milliseconds}
    unfinished = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        unfinished.write_text(json.dumps(answer) + "\n", encoding="utf-8")
        os.replace(unfinished, file)


def _circumstances(ways: Mapping[str, Pack], dtype: torch.dtype) -> str:
    """A name for what the answer depends on."""
    parts = [*ways, str(dtype), torch.__version__, str(torch.get_num_threads()), _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What kind it is, and what it can do; Linux writes that into a file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    first = text.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(("model", "flags", "Features")))
