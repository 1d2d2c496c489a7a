"""A worker as the benchmark sees it: a process that is asked, and may fail in any way."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from paged_engine.benchmark.processes.memory import peak_memory, processes_of
from paged_engine.errors import PagedEngineError


class WorkerError(PagedEngineError):
    """A worker gave no answer, or none that can be used.

    Attributes:
        log: What it printed meanwhile; None where it was never started.
    """

    log: Path | None = None


class MissingError(WorkerError):
    """The engine is not installed where the worker looked for it."""


class WorkerProcess:
    """A process in a session of its own, which ends with everything that it started.

    Args:
        command: What to start.
        folder: Where.
        environment: Its variables.
        limit: Seconds that it may take for one answer.

    Attributes:
        age: Seconds since it was started.
    """

    SECONDS_TO_LEAVE = 10.0

    def __init__(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], limit: float
    ) -> None:
        self._limit = limit
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process has ended
        self._began = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise WorkerError(
                f"{command[0]} cannot be started ({error.strerror}); give a Python interpreter"
            ) from error
        self._answers: queue.Queue[bytes] = queue.Queue()  # an empty one: there will be no more
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=[self._process.stdout], daemon=True).start()

    @property
    def age(self) -> float:
        return time.perf_counter() - self._began

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it: with a word first, unless something went wrong already."""
        assert self._process.stdin is not None
        with suppress(WorkerError, subprocess.TimeoutExpired):
            if kind is None:
                self._tell({"do": "bye"})
                self._process.wait(self.SECONDS_TO_LEAVE)
        self._kill()
        if isinstance(error, WorkerError):
            error.log = self._kept_log()
        with suppress(OSError):  # what was not sent cannot be sent any more
            self._process.stdin.close()
        self._log.close()

    def ask(self, message: Mapping[str, Any], expected: str) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            MissingError: The engine is not there.
            WorkerError: There is no such answer: it failed, ended, hangs, or says something else.
        """
        self._tell(message)
        try:
            line = self._answers.get(timeout=self._limit)
        except queue.Empty:
            raise WorkerError(
                f"it gave no answer to {message['do']!r} in {self._limit:g} s; give it more with "
                f"--peer-limit"
            ) from None
        if not line:
            raise self._ended()
        try:
            answer: dict[str, Any] = json.loads(line)
            event = answer["event"]
            if event == "missing":
                raise MissingError(f"not installed: it has no {answer['module']}")
            if event == "failed":
                raise WorkerError(" ".join(str(answer["error"]).split()))
            if event != expected:
                raise WorkerError(f"it answered {event!r}; expected {expected!r}")
        except (ValueError, KeyError, TypeError) as error:
            said = line[:80].decode(errors="replace").strip()
            raise WorkerError(f"it answered {said!r}; expected a JSON object") from error
        return answer

    def peak_memory(self) -> int:
        """Bytes, of the process and those that it started."""
        return peak_memory(self._process.pid)

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _read(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(b"")

    def _ended(self) -> WorkerError:
        """What to say of a process that has ended, or is about to."""
        try:
            code: object = self._process.wait(self.SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line]
        last = f"; its last line: {lines[-1].strip()}" if lines else ""
        return WorkerError(f"it ended (exit code {code}){last}")

    def _kept_log(self) -> Path:
        self._log.seek(0)
        with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log", delete=False) as kept:
            shutil.copyfileobj(self._log, kept)
        return Path(kept.name)

    def _kill(self) -> None:
        """The whole session: an engine's own processes may have groups of their own."""
        for process in processes_of(self._process.pid):
            try:
                os.kill(int(process.name), signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
