"""The default model's stand-in where nothing can be fetched: its shape, with seeded weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENIZER = Path(__file__).resolve().parent / "tokenizer"

# SmolLM2-135M-Instruct: 30 layers, 9 heads that share 3 of keys and values
SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
}


@cache
def stand_in(device: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The model, on `device`; the same weights on every device.

    The weights are drawn small enough that 30 layers do not blow up, and large enough that
    greedy tokens depend on what was read from the cache.
    """
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, **ids))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.1)
    model.tie_weights()
    return model.to(device=device, dtype=dtype).eval()
