"""What a measurement was made on: without it a number means little."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

NOISY = 0.5  # a load average from which on it is told


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and versions.

    Attributes:
        cpu: The processor's name, as far as the system tells it.
        cpu_features: The best instruction set that torch uses on it.
        cores: Logical cores that this process may use.
        threads: Those that torch computes with.
        gpu: The card's name; None where the work was done on the CPU.
        load_average: Processes that were ready to run in the minute before; None where the system
            does not count them.  Much above 0: others were at work too.
    """

    system: str
    cpu: str
    cpu_features: str
    cores: int
    threads: int
    gpu: str | None
    load_average: float | None
    python: str
    torch: str
    transformers: str

    def line(self) -> str:
        """For people, in one line."""
        where = self.gpu or f"{self.cpu} ({self.threads} threads of {self.cores} cores)"
        return f"{where}, torch {self.torch}, transformers {self.transformers}"

    def noise(self) -> str | None:
        """What to say where others were at work too."""
        if self.load_average is None or self.load_average <= NOISY:
            return None
        return (
            f"others were at work too (load average {self.load_average:.1f} before it began): "
            f"times are too long, and ratios may be off"
        )


def this_machine(device: torch.device) -> Machine:
    """The machine that we run on, for work on `device`."""
    return Machine(
        system=platform.platform(),
        cpu=_cpu_name(),
        cpu_features=torch.backends.cpu.get_cpu_capability(),
        cores=_num_cores(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # a container may have fewer than there are
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu_name() -> str:
    """Python knows it on few systems; Linux writes it into a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
