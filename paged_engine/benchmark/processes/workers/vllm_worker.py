"""vLLM on the CPU as a worker; its mode is "eager" or "compiled", which is its default."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from ctypes.util import find_library
from importlib import import_module
from pathlib import Path
from typing import Any

from .protocol import Job, Limits, serve

BLOCK_SIZE = 128  # its default on the CPU


class Vllm:
    """The offline engine, in the processes that it makes of itself."""

    def __init__(self, limits: Limits) -> None:
        cores = sorted(os.sched_getaffinity(0))[: limits.threads]
        # Left alone it may keep a core free for its front end, which has little to do here.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        # What it saved of its compiled code, 0.32 cannot load on the CPU ("'function' object has no
        # attribute 'finalize_loading'"), and compiles at every start. Its older cache works.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")

        vllm: Any = import_module("vllm")
        self.version: str = vllm.__version__
        self._vllm = vllm
        self._engine = vllm.LLM(
            model=limits.model,
            dtype=limits.dtype,
            max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=limits.num_blocks(BLOCK_SIZE) + 1,  # one is never used
            # A share of all memory that must be free at the start, or it refuses; the pool is what
            # was just said, whatever the share.
            gpu_memory_utilization=0.4,
            enable_prefix_caching=False,
            enforce_eager=limits.mode == "eager",
        )

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        outputs = self._engine.generate(
            [{"prompt_token_ids": job["prompt"]} for job in jobs],
            [
                self._vllm.SamplingParams(
                    temperature=0.0, max_tokens=job["num_tokens"], ignore_eos=True
                )
                for job in jobs
            ],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]


def preload() -> None:
    """Start again with the libraries loaded first that vLLM's manual says to, where they are there.

    They are Intel's OpenMP, which comes with vllm-cpu, and tcmalloc, which a system may have.
    """
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    wanted = [str(openmp)] if openmp.is_file() else []
    if tcmalloc := find_library("tcmalloc_minimal"):
        wanted.append(tcmalloc)
    if wanted and "LD_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = ":".join(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "workers.vllm_worker"])


if __name__ == "__main__":  # its own processes import this file again
    preload()
    serve(Vllm)
