"""The memory of a process and all those that it started, as Linux counts it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) (\S+) (\d+)")


def peak_memory(session: int) -> int:
    """Bytes: the highest resident size of each process of a session, added up.

    A file that several of them have mapped, a library for one, lies in memory once and counts once;
    that is known for the moment of the call only.  Processes that ended before do not count.
    """
    peak = 0
    shares: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for process in processes_of(session):
        try:
            mapped = _mapped(process)
            peak += _high_water(process)
        except OSError:  # it ended meanwhile
            continue
        for key, size in mapped.items():
            shares[key].append(size)
    return peak - sum(sum(sizes) - max(sizes) for sizes in shares.values())


def processes_of(session: int) -> list[Path]:
    """Their folders in /proc."""
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # a name may hold anything
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(path.parent)
    return found


def _high_water(process: Path) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # one that is ending has none any more


def _mapped(process: Path) -> dict[tuple[str, str, str], int]:
    """Bytes in memory of each part of a file that is mapped, its own changed pages left out."""
    sizes: dict[tuple[str, str, str], int] = defaultdict(int)
    key = None
    for line in (process / "smaps").read_text(errors="replace").splitlines():
        if found := _MAPPING.match(line):
            offset, device, inode = found.groups()
            key = (device, inode, offset) if inode != "0" else None
        elif key is not None:
            name, _, value = line.partition(":")
            if name == "Rss":
                sizes[key] += int(value.split()[0]) * 1024
            elif name == "Anonymous":
                sizes[key] -= int(value.split()[0]) * 1024
    return sizes
