"""The kernels read and write their tensors and nothing behind them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paged_engine.kernels.library import load_kernels
from tests.helpers.guarded import CALLS

REPO = Path(__file__).resolve().parents[2]
LEAVES_IT = """
import ctypes, torch
from tests.helpers.guarded import guarded
there = guarded(torch.zeros(7))
ctypes.memset(there.data_ptr() + {}, 1, 1)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's mprotect guards memory")


def exit_code(*arguments: str) -> int:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True).returncode


def test_whoever_leaves_guarded_memory_is_stopped() -> None:
    assert exit_code("-c", LEAVES_IT.format(27)) == 0
    assert exit_code("-c", LEAVES_IT.format(28)) == -signal.SIGSEGV


@pytest.mark.parametrize("call", CALLS)
def test_nothing_behind_its_tensors_is_touched(call: str) -> None:
    load_kernels()  # compiled once
    assert exit_code("-m", "tests.helpers.guarded", call) == 0
