"""Which runner a model gets: the fused one where all of it is known, else transformers' modules."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from paged_engine.attention import Attend, CpuAttention, get_backend
from paged_engine.kernels.library import load_kernels
from paged_engine.kv_cache import free_memory
from paged_engine.models.llama_checkpoint import LlamaCheckpoint
from paged_engine.models.llama_family import LlamaOfTransformers, is_llama_like, num_weights
from paged_engine.models.llama_runner import LlamaRunner
from paged_engine.models.runner import ModelRunner

if TYPE_CHECKING:
    from paged_engine.models.transformers_runner import TransformersRunner


def choose_runner(
    model: Any,
    attention: str | Attend | None,
    block_size: int,
    *,
    check: bool = True,
    owns_model: bool = False,
) -> ModelRunner:
    """The model as something the engine can drive.

    Args:
        model: Of transformers, or a checkpoint that is Llama-like, or a runner already.
        attention: See :func:`paged_engine.attention.get_backend`.  With None a Llama-like model on
            a CPU is run fused, by our kernels; with any other, by transformers' modules.
        block_size: Tokens a block, for the check.
        check: Compare its logits with the model's own first, or with those of its formula.
        owns_model: Nobody else runs this model, so that its weights need not be kept twice.

    Raises:
        UnsupportedModelError: The model cannot be served token for token; it says why.
    """
    if isinstance(model, ModelRunner):
        return model
    runner: ModelRunner
    if isinstance(model, LlamaCheckpoint):
        probe = model.probe(block_size) if check else None  # before weights are freed
        runner = LlamaRunner(model, load_kernels(), release=True)
    else:
        # here, because whoever needs none of transformers' modules need not wait for their import
        from paged_engine.models.transformers_runner import TransformersRunner

        runner = plain = TransformersRunner(model, get_backend(attention, model))
        probe = plain.probe(block_size) if check else None
        if attention is None and _can_be_fused(plain, owns_model):
            runner = LlamaRunner(LlamaOfTransformers(plain), load_kernels(), release=owns_model)
    if probe is not None:
        probe.check(runner)
    return runner


def _can_be_fused(runner: TransformersRunner, owns_model: bool) -> bool:
    if not isinstance(runner.attend, CpuAttention) or not is_llama_like(runner.model):
        return False
    more = 0 if owns_model else num_weights(runner.model) * runner.dtype.itemsize
    free = free_memory(runner.device)
    if more > free:
        print(
            f"paged_engine: the model is run by transformers' modules, which is slower: its packed "
            f"weights would take {more / 1e9:.1f} GB more, of {free / 1e9:.1f} that may be used",
            file=sys.stderr,
        )
        return False
    return True
