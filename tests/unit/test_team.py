"""Threads that make calls together: they wait for pieces of work, not for each other."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paged_engine.kernels import build

COUNTS = (5, 1, 40, 0, 7, 3, 100, 2)
LONG = 20_000  # milliseconds for which a piece is held if nobody goes on without it
_ARRAYS = ("counts", "made", "given", "values")
_NUMBERS = (
    *("num_calls", "num_threads", "most_pieces", "slow_call", "slow_piece"),
    *("twice", "milliseconds", "finished_meanwhile", "given_meanwhile"),
)


class Probe(ctypes.Structure):
    """`struct Probe` of team_probe.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    ]


def compiled(folder: Path, header: str) -> Any:
    """The probe, with that for a team."""
    (folder / "team.h").write_text(header, encoding="utf-8")
    source = Path(__file__).with_name("team_probe.cpp")
    command = [build.find_compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", *build.openmp()]
    command += [f"-I{folder}", str(source), "-o", str(folder / "probe.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "probe.so"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    header = (build.SOURCES / "team.h").read_text(encoding="utf-8")
    return compiled(tmp_path_factory.mktemp("team"), header)


def run(
    library: Any,
    counts: Sequence[int] = COUNTS,
    *,
    num_threads: int = 2,
    slow: tuple[int, int] = (-1, -1),
    twice: bool = True,
    milliseconds: int = LONG,
) -> tuple[Probe, list[int], list[int], list[int]]:
    """The probe, and of each call how often pieces were made and given; what the last one gave."""
    size = len(counts)
    arrays = [(ctypes.c_int64 * n)() for n in (size, size, size, max(counts))]
    arrays[0][:] = list(counts)
    pointers = [ctypes.cast(array, ctypes.POINTER(ctypes.c_int64)) for array in arrays]
    probe = Probe(
        *pointers, size, num_threads, max(counts), *slow, int(twice), milliseconds, -1, -1
    )
    library.probe.restype = ctypes.c_int64
    assert library.probe(ctypes.byref(probe)) == size
    _, made, given, values = (list(array) for array in arrays)
    return probe, made, given, values[: counts[-1]]


def expected(counts: Sequence[int]) -> list[int]:
    rooms = [[1] * max(counts), [1] * max(counts)]
    for call, count in enumerate(counts):
        before = rooms[call % 2][: counts[call - 1] if call else 0]
        for piece in range(count):
            value = 1 + call * piece
            for number in before:
                value = (value * 31 + number) % 1_000_003
            rooms[(call + 1) % 2][piece] = value
    return rooms[len(counts) % 2][: counts[-1]]


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_piece_is_given_once_and_calls_follow_each_other(
    library: Any, num_threads: int, twice: bool
) -> None:
    for counts in (COUNTS, COUNTS * 20, (3,)):
        _, made, given, values = run(library, counts, num_threads=num_threads, twice=twice)
        assert values == expected(counts)
        assert given == list(counts)
        assert all(m >= count for m, count in zip(made, counts, strict=True))


@pytest.mark.parametrize("num_threads", [2, 4])
@pytest.mark.parametrize("slow", [(0, 0), (2, 39), (2, 13), (6, 57)])
def test_nobody_waits_for_a_thread_that_was_put_off_its_core(
    library: Any, slow: tuple[int, int], num_threads: int
) -> None:
    """Until the list is done it holds a piece, and then gives what it made, which nobody wants."""
    probe, made, given, values = run(library, slow=slow, num_threads=num_threads)
    assert probe.finished_meanwhile == len(COUNTS)
    assert values == expected(COUNTS)
    assert given == list(COUNTS)
    assert made[slow[0]] > COUNTS[slow[0]]


def test_a_piece_that_is_done_only_once_is_waited_for(library: Any) -> None:
    probe, made, given, values = run(library, slow=(2, 13), twice=False)
    assert probe.given_meanwhile == COUNTS[2] - 1  # by the others, some of them from its part
    assert probe.finished_meanwhile == 2
    assert made == given == list(COUNTS)
    assert values == expected(COUNTS)


FAULTS = {
    "what comes late is given too": ("if (!is_first_with(piece)) return;", "is_first_with(piece);"),
    "nobody does a piece twice": ("if (waited < PATIENCE) continue;", "continue;"),
    "a late thread takes pieces of a later call": ("its > call ? count", "its > call ? 0"),
    "parts are not shared out": ("for (; tried < parts; tried++)", "for (; tried < 1; tried++)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_in_the_source_is_seen(name: str, tmp_path: Path) -> None:
    """In a process of its own: some faults keep threads waiting for ever."""
    right, wrong = FAULTS[name]
    header = (build.SOURCES / "team.h").read_text(encoding="utf-8")
    assert right in header, f"the source has no {right!r} any more"
    compiled(tmp_path, header.replace(right, wrong))
    code = (
        "import ctypes, sys\nfrom tests.unit.test_team import COUNTS, expected, run\n"
        f"library = ctypes.CDLL({str(tmp_path / 'probe.so')!r})\n"
        "for slow, twice in (((-1, -1), 1), ((2, 39), 1), ((0, 0), 1), ((2, 13), 0)):\n"
        "    probe, made, given, values = run(\n"
        "        library, slow=slow, twice=bool(twice), milliseconds=2000)\n"
        "    got_on = probe.finished_meanwhile == (len(COUNTS) if twice else 2)\n"
        "    got_on &= bool(twice) or probe.given_meanwhile == COUNTS[2] - 1\n"
        "    wrong = values != expected(COUNTS) or given != list(COUNTS)\n"
        "    if wrong or slow[0] >= 0 and not got_on:\n"
        "        sys.exit(3)\n"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    try:
        code_of_end = subprocess.run(command, cwd=root, timeout=15).returncode
    except subprocess.TimeoutExpired:
        return  # they wait for ever
    assert code_of_end == 3
