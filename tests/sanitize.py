"""The tests of the C++ kernels once more, with a compiler's checks of every access to memory.

    python -m tests.sanitize          GCC or Clang on Linux; some ten minutes

AddressSanitizer surrounds each tensor that torch allocates with bytes that nobody may touch, and
ends the process at the first access to them.  To see that it would: a kernel that reads one float
behind the end of its input is compiled and called first, and must be stopped.

The kernels with planted faults are among the tests: a fault has to give wrong numbers, and may not
read foreign memory, since a test that ends its process fails without saying why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from paged_engine.kernels import build

FILES = (
    "tests/unit/test_cpu_attention.py",
    "tests/unit/test_layer_kernels.py",
    "tests/unit/test_products.py",
    "tests/unit/test_tape.py",
    "tests/models/test_taped_steps.py",
)
LIBRARIES = {"g++": "libasan.so", "clang++": "libclang_rt.asan-x86_64.so"}
OVERRUN = """\
import torch
from paged_engine.kernels.library import load_kernels
x, weight = torch.randn(1, 64), torch.ones(63)
load_kernels().add_and_norm(x, None, weight, 1e-5, torch.empty_like(x))
"""


def environment(cache: str) -> dict[str, str]:
    """Variables under which kernels are compiled with the checks, and Python has their runtime."""
    compiler = build.find_compiler()
    family = "clang++" if "clang" in Path(os.path.realpath(compiler)).name else "g++"
    asked = [compiler, f"-print-file-name={LIBRARIES[family]}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        sys.exit(f"{compiler} has no {LIBRARIES[family]}; install its sanitizers (libasan)")
    return os.environ | {
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",  # Python's own are not ours
        "CXXFLAGS": "-fsanitize=address -fno-omit-frame-pointer -g",
        "PAGED_ENGINE_CACHE": cache,
    }


def main() -> int:
    """Run them; the exit code is pytest's, or 1 where the checks would not have seen a fault."""
    if shutil.which("c++") is None and "CXX" not in os.environ:
        sys.exit("there is no C++ compiler")
    with tempfile.TemporaryDirectory() as cache:
        variables = environment(cache)
        planted = subprocess.run(
            [sys.executable, "-c", OVERRUN], env=variables, capture_output=True, text=True
        )
        if "ERROR: AddressSanitizer" not in planted.stderr:
            print(f"the planted fault was not seen:\n{planted.stderr}", file=sys.stderr)
            return 1
        print("the planted fault was seen; now the tests", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"]
        return subprocess.run([*command, *FILES], env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
