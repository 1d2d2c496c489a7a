"""OpenVINO GenAI's continuous batching as a worker; it converts the model first, once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .protocol import Job, Limits, serve

BLOCK_SIZE = 32  # its own, on the CPU
PRECISION = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """The pipeline with paged attention."""

    def __init__(self, limits: Limits) -> None:
        numpy: Any = import_module("numpy")
        openvino: Any = import_module("openvino")
        openvino_genai: Any = import_module("openvino_genai")
        folder = Path(limits.cache) / "openvino"
        if not folder.is_dir():
            convert(Path(limits.model), folder)
        self.version: str = openvino_genai.__version__.partition("-")[0]  # a hash follows
        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.max_num_seqs = limits.max_num_seqs
        scheduling.max_num_batched_tokens = limits.max_num_batched_tokens
        scheduling.num_kv_blocks = limits.num_blocks(BLOCK_SIZE)
        scheduling.enable_prefix_caching = False
        precision = PRECISION[limits.dtype]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder,
            scheduling,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "KV_CACHE_PRECISION": precision,  # 8 bits left alone, and nobody else has so few
                "INFERENCE_NUM_THREADS": limits.threads,
            },
        )

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        prompts = [self._openvino.Tensor(self._numpy.array([job["prompt"]])) for job in jobs]
        outputs = self._pipeline.generate(prompts, [self._greedy(job) for job in jobs])
        return [list(output.m_generation_ids[0]) for output in outputs]

    def _greedy(self, job: Job) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = job["num_tokens"]
        config.ignore_eos = True
        config.do_sample = False
        return config


def convert(model: Path, folder: Path) -> None:
    """Have optimum convert the model; a folder of that name is whole."""
    work = folder.with_name("openvino-unfinished")
    converter = Path(sys.executable).with_name("optimum-cli")
    if not converter.is_file():
        raise ModuleNotFoundError(f"there is no {converter}", name="optimum-cli")
    command = [
        *[
            str(converter),
            "export",
            "openvino",
            "--model",
            str(model),
            "--task",
            "text-generation-with-past",
        ],
        *["--weight-format", "fp32", str(work)],
    ]
    subprocess.run(command, check=True)
    work.rename(folder)


if __name__ == "__main__":
    serve(OpenVino)
