"""Compile the C++ kernels on first use, and find them again.

A compiler makes one shared library of all `*.cpp` here, for what this processor can do.  It lies in
the user's cache under a name that stands for everything it was made from: sources, flags, compiler.
Whoever comes second waits for the first or finds the work done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from paged_engine.errors import KernelsUnavailableError

SOURCES = Path(__file__).parent
TIMEOUT = 300  # seconds for the compiler

_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
_BF16 = ["-mavx512bf16"]
_AMX = ["-mamx-tile", "-mamx-bf16"]
# What compilers older than the processor do not know, and the sources do without.
_NEWER = [*_BF16, *_AMX]
# What each kind of processor may use, by the name that torch gives it; BF16: with dot products;
# AMX: and with a unit for small matrices.
INSTRUCTIONS = {
    "AMX": [*_AVX512, *_BF16, *_AMX],
    "AVX512_BF16": [*_AVX512, *_BF16],
    "AVX512": _AVX512,
    "AVX2": _AVX2,
    "DEFAULT": [],
}
# NaN and infinity keep their meaning: -ffast-math would take it from them.
FLAGS = [
    *["-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math"],
    *["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"],
]


def library(capability: str, extra: Sequence[str] = ()) -> Path:
    """The compiled kernels; they are made now if nobody has yet.

    Args:
        capability: A key of `INSTRUCTIONS`.
        extra: More flags for the compiler, before those that CXXFLAGS names.

    Raises:
        KernelsUnavailableError: There is no compiler, or it failed; it says which.
    """
    compiler = find_compiler()
    own = [*FLAGS, *INSTRUCTIONS.get(capability, []), *openmp(), *extra]
    command = [compiler, *own, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    target = cache_folder() / _key(command) / "kernels.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                _compile(command, target)
    except OSError as error:
        raise KernelsUnavailableError(
            f"the folder {target.parent.parent} cannot be written ({error.strerror}); set "
            f"PAGED_ENGINE_CACHE to one that can"
        ) from error
    return target


def find_compiler() -> str:
    """The C++ compiler of this machine, `$CXX` first.

    Raises:
        KernelsUnavailableError: There is none.
    """
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise KernelsUnavailableError(
        "there is no C++ compiler on PATH (c++, g++ or clang++, or what CXX names); install one, "
        "on Debian and Ubuntu with: apt-get install g++"
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept: beside the models."""
    chosen = os.environ.get("PAGED_ENGINE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(chosen) if chosen else Path(base) / "paged_engine") / "kernels"


def _compile(command: list[str], target: Path) -> None:
    """Run the compiler; the library appears whole or not at all."""
    print("paged_engine: compiling its CPU kernels, once, for some seconds", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        end = ["-o", str(made), *sorted(str(path) for path in SOURCES.glob("*.cpp"))]
        done = _run([*command, *end])
        if done.returncode != 0 and not set(_NEWER).isdisjoint(command):
            done = _run([*(flag for flag in command if flag not in _NEWER), *end])
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            why = next((line for line in said if "error" in line), (said or ["no reason given"])[0])
            raise KernelsUnavailableError(f"{command[0]} could not compile the kernels: {why}")
        os.replace(made, target)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailableError(f"{command[0]} could not be run: {error}") from error


def openmp() -> list[str]:
    """Flags for threads; torch has loaded the same library, so that they share theirs."""
    if platform.system() != "Darwin":
        return ["-fopenmp"]
    import torch

    folder = Path(torch.__file__).parent / "lib"  # Apple's compiler brings no OpenMP of its own
    return ["-Xpreprocessor", "-fopenmp", f"-L{folder}", "-lomp", f"-Wl,-rpath,{folder}"]


def _key(command: Sequence[str]) -> str:
    """A name for what is made: it changes with sources, flags and compiler."""
    digest = hashlib.sha256(" ".join([platform.machine(), *command]).encode())
    with contextlib.suppress(OSError):
        compiler = os.stat(command[0])
        digest.update(f"{compiler.st_size} {compiler.st_mtime_ns}".encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
