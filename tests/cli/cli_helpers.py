"""The command line as a user has it: a process with streams, signals and an exit code."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "paged_engine"]
on_posix = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as on POSIX systems")

PATIENCE = 120  # seconds; a busy machine may take long to import torch


def environment(**more: str) -> dict[str, str]:
    settings = {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    dropped = {"PAGED_ENGINE_MODEL", "PYTHONUNBUFFERED"}  # the latter would flush for us
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8", "TERM": "dumb"}
    return {**kept, **settings, **more}


def run(
    *arguments: str, stdin: str = "", cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with no terminal anywhere."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(**more),
        cwd=cwd,
        timeout=PATIENCE,
        check=False,
    )


def start(*arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start it, with pipes to and from it."""
    streams = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | pipes
    return subprocess.Popen([*COMMAND, *arguments], env=environment(), **streams)


def interrupted(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Press Ctrl-C; returns the exit code and what it said on stderr."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said.decode()


def reader_gone(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Close the pipe it writes to; returns the exit code and what it said on stderr."""
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    code = process.wait(PATIENCE)
    for stream in (process.stdin, process.stderr):
        if stream is not None:
            stream.close()
    return code, said


class Terminal:
    """A process whose streams are all one terminal, at which Ctrl-C and Ctrl-D mean something."""

    def __init__(self, *arguments: str, **streams: Any) -> None:
        import fcntl
        import pty
        import termios

        self._mine, theirs = pty.openpty()
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs} | streams,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._unread = ""

    def until(self, text: str) -> str:
        """Read to the next `text`; returns what came before it."""
        while text not in self._unread:
            new = self._read()
            assert new, f"it ended without {text!r}, with {self._unread[-2000:]!r}"
            self._unread += new
        before, _, self._unread = self._unread.partition(text)
        return before

    def until_more_than(self, length: int) -> None:
        """Read until so many characters have come that were not looked at."""
        while len(self._unread) <= length:
            new = self._read()
            assert new, f"it ended with {self._unread!r}"
            self._unread += new

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def end(self, press: str = "") -> tuple[int, str]:
        """Wait for its end; returns the exit code and what it still said.

        A key is pressed again after a while, as a person would: Ctrl-C in the instant between
        readline's prompt and its waiting for keys is noticed at the next key.
        """
        self.type(press)
        while new := self._read(press):
            self._unread += new
        os.close(self._mine)
        return self.process.wait(PATIENCE), self._unread

    def _read(self, press: str = "") -> str:
        for _ in range(PATIENCE // 5):
            ready, _, _ = select.select([self._mine], [], [], 5)
            if ready:
                try:
                    return os.read(self._mine, 65_536).decode(errors="replace")
                except OSError:  # so says Linux when the other end was closed
                    return ""
            self.type(press)
        raise AssertionError(f"nothing came for long, after {self._unread[-2000:]!r}")


CTRL_C, CTRL_D = "\x03", "\x04"
