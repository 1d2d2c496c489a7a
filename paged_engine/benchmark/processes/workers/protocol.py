"""What a worker and the benchmark say to each other: one JSON object a line, over stdin and stdout.

    {"do": "load", "limits": {...}, "first": job}  ->  {"event": "ready", "version": "1.2"}
    {"do": "run", "jobs": [job, ...]}              ->  {"event": "done", "seconds": 1.5, "tokens": [[...]]}
    {"do": "bye"}                                  ->  the process ends

with `{"prompt": [token, ...], "num_tokens": 5}` for a job.  "ready" is said when the first token of
the first job is there.  In the place of an answer there may be `{"event": "missing", "module":
"vllm"}` or `{"event": "failed", "error": "why"}`.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, TypedDict


class Job(TypedDict):
    """A prompt, and how many tokens to generate whatever the model says."""

    prompt: list[int]
    num_tokens: int


@dataclass(frozen=True)
class Limits:
    """What all engines have to keep to.

    Attributes:
        model: A folder with safetensors, as transformers reads it.
        cache: A folder for what an engine has to convert the model to.
        dtype: "float32" or "bfloat16", of weights and of keys and values.
        threads: To compute with.
        max_model_len: The most tokens of a request, prompt and output together.
        max_num_seqs: The most requests in a batch.
        max_num_batched_tokens: The most tokens in a step.
        num_kv_tokens: Those that the KV cache has room for.
        mode: Which way of the engine's; "" where it has only one.
    """

    model: str
    cache: str
    dtype: str
    threads: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_tokens: int
    mode: str = ""

    def num_blocks(self, block_size: int) -> int:
        """KV blocks of this size that hold `num_kv_tokens`."""
        return -(-self.num_kv_tokens // block_size)


class LoadedEngine(Protocol):
    """An engine that is ready to work."""

    version: str

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The greedy tokens of each job, to its full length, with prefix caching off."""
        ...


def serve(load: Callable[[Limits], LoadedEngine]) -> None:
    """Answer until the other side says bye, or is gone."""
    answers = _own_stdout()
    engine: LoadedEngine | None = None
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        try:
            if message["do"] == "load":
                engine = load(Limits(**message["limits"]))
                engine.generate([message["first"]])
                answer = {"event": "ready", "version": engine.version}
            elif message["do"] == "run":
                assert engine is not None
                began = time.perf_counter()
                tokens = engine.generate(message["jobs"])
                seconds = time.perf_counter() - began
                answer = {"event": "done", "seconds": seconds, "tokens": tokens}
            else:
                break
        except ModuleNotFoundError as error:
            traceback.print_exc()
            answer = {"event": "missing", "module": error.name or str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"event": "failed", "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _own_stdout() -> TextIO:
    """Stdout for the answers alone: engines, and the processes that they start, print to it too.

    From here on what they print goes to stderr.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
