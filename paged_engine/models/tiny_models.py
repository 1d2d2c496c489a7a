"""Small seeded models, made in memory, for tests and for notebooks without a download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from paged_engine.errors import UnsupportedModelError

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}
# Gemma scales its embeddings up: tied to the output, they alone would decide every token.
_GEMMA = _GROUPED | {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": False}

# Windows are short, and the soft cap low, so that getting them wrong changes tokens.
TINY_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 32},
    "mistral": _GROUPED | {"sliding_window": 12},
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0]},
    "gemma2": _GEMMA
    | {
        "sliding_window": 12,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": _GEMMA
    | {
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": _GROUPED,
}


def tiny(family: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of two layers with random weights, in fp32 on the CPU.

    Args:
        family: One of `TINY_FAMILIES`.
        seed: The same seed gives the same weights.
        overrides: Values of its configuration to change.

    Returns:
        The model.  Its weights have a standard deviation of at least 0.1: with the usual
        0.02 it would give the same greedy tokens even with every position zeroed.

    Raises:
        UnsupportedModelError: There is no such family.
    """
    if family not in TINY_FAMILIES:
        raise UnsupportedModelError(
            f"no tiny model of family {family!r}; expected one of {', '.join(TINY_FAMILIES)}"
        )
    values = _COMMON | TINY_FAMILIES[family] | overrides
    config = AutoConfig.for_model(family, **values)
    # drawn apart from the caller's random numbers, which stay as they were
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15)
                elif "norm" not in name and "ln_" not in name:
                    parameter.normal_(0.0, 0.1)  # biases, which are zero otherwise
    model.tie_weights()
    model.generation_config.eos_token_id = values["eos_token_id"]
    model.generation_config.pad_token_id = values["pad_token_id"]
    return model.eval()
