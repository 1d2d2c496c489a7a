"""Tiny models with random weights of every causal LM family of the installed transformers.

A family's default configuration is made small by the names that most families share; what is
particular to one stands in `PARTICULAR`.  `served` then holds the engine against transformers.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.errors import UnsupportedModelError
from tests.helpers.parity import Observed, ParityError, Truth, assert_parity, prompt_of

# Made small by these names, where a family's configuration has them.
SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": 12,
    "attention_chunk_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "default_language": "en_XX",
    # other words for the same
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "vocab_size_per_layer_input": 256,
    "hidden_size_per_layer_input": 16,
    "d_head": 16,
    "d_inner": 96,
    "ffn_hidden_size": 96,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    # experts
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
}

# Kinds of layers that the family's models have although its default configuration has not, and
# sizes that must fit each other.
PARTICULAR: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "codegen": {"rotary_dim": 8},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}, "n_layers": 2},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
        "intermediate_size": 96,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": ["full_attention", "sliding_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 32, "moe_topk": 2, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "state_size": 16, "n_groups": 1},
    "mellum": {"layer_types": ["full_attention", "sliding_attention"]},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "qwen4_exp_text": {"token_budget": 8, "compress_ratio": 4},
    "reformer": {"axial_pos_embds_dim": (32, 32), "axial_pos_shape": (16, 32)},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}

REPO = Path(__file__).resolve().parents[2]
TABLE = REPO / "paged_engine" / "models" / "families.json"
PAGE = REPO / "docs" / "families.md"

MOST_PARAMETERS = 60_000_000


class NotBuilt(Exception):
    """No tiny model of the family could be made."""


def families() -> list[str]:
    """Every model type for which transformers knows a causal LM."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """The family's default configuration, made small; each kind of layer is kept once."""
    default = AutoConfig.for_model(family)
    values = _small_values(default)
    for name in default.sub_configs:
        own = getattr(default, name, None)
        if isinstance(own, PreTrainedConfig):
            values[name] = type(own)(**_small_values(own))
    values |= PARTICULAR.get(family, {}) | overrides
    return AutoConfig.for_model(family, **values)


def _small_values(default: PreTrainedConfig) -> dict[str, Any]:
    known = {*default.to_dict(), *default.attribute_map}
    values = {name: value for name, value in SMALL.items() if name in known}
    if default.to_dict().get("kv_lora_rank"):  # heads share what is compressed, not the heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    if kinds := default.to_dict().get("layer_types"):
        values["layer_types"] = list(dict.fromkeys(kinds))
        values["layer_types"] *= 1 if len(values["layer_types"]) > 1 else 2
        values["num_hidden_layers"] = len(values["layer_types"])
    return values


def tiny_of(family: str, **overrides: Any) -> PreTrainedModel:
    """A tiny model of the family with random weights that make every part count.

    Raises:
        NotBuilt: With the reason.
    """
    try:
        config = small_config(family, **overrides)
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        if size > MOST_PARAMETERS:
            raise NotBuilt(f"it would have {size:,} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0.0, 0.15)
                    elif "norm" not in name and "ln_" not in name:
                        parameter.normal_(0.0, 0.1)
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
    return model.eval()


@dataclass(frozen=True)
class Verdict:
    """What became of a family: "identical", "refused", "wrong" or "not built", and why.

    The reason is one line.
    """

    family: str
    outcome: str
    reason: str = ""
    num_tokens: int = 0
    max_error: float = 0.0


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 300 else line[:297] + "..."


PROMPT_LENGTHS = (13, 27, 5, 18)
NUM_TOKENS = 8


def judge(family: str, *, probe: bool = True, **parts: Any) -> Verdict:
    """Serve a tiny model of the family and hold tokens and logits against transformers.

    Args:
        family: Its model type.
        probe: Whether the engine may look first whether it can.
        parts: Of the engine.
    """
    try:
        model = tiny_of(family)
    except NotBuilt as error:
        return Verdict(family, "not built", _line(error))
    try:
        config = EngineConfig(block_size=4, num_blocks=14, max_num_batched_tokens=9, probe=probe)
        served = ContinuousEngine(model, config=config, **parts)
    except UnsupportedModelError as error:
        return Verdict(family, "refused", _line(error))
    truth = Truth(model)
    try:
        for length in PROMPT_LENGTHS:
            truth.greedy(prompt_of(length, 8), NUM_TOKENS)
    except Exception as error:
        return Verdict(family, "not built", f"transformers' own generate fails: {_line(error)}")
    observed = Observed(served)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    asked = {
        observed.engine.add_request(prompt_of(length, 8), params): params
        for length in PROMPT_LENGTHS
    }
    try:
        observed.run()
        tally = assert_parity(observed, truth, asked)
    except ParityError as error:
        return Verdict(family, "wrong", _line(error))
    except Exception as error:
        return Verdict(family, "wrong", f"{type(error).__name__}: {_line(error)}")
    return Verdict(family, "identical", "", tally.num_tokens, tally.max_error)


# ------------------------------------------------------------------ the table


def load_table() -> dict[str, Any]:
    """What the last walk found: the version of transformers, and a row for each family."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def table_of(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts as they are written to `TABLE`."""
    rows = [{"family": v.family, "outcome": v.outcome, "reason": v.reason} for v in verdicts]
    return {"transformers": transformers.__version__, "families": rows}


def page_of(table: dict[str, Any]) -> str:
    """The page of the docs that `table` gives."""
    rows: dict[str, list[dict[str, str]]] = {"identical": [], "refused": [], "not built": []}
    for row in table["families"]:
        rows[row["outcome"]].append(row)
    served = ", ".join(f"`{row['family']}`" for row in rows["identical"])
    lines = [
        "# Which models the engine runs",
        "",
        "Any causal language model of transformers that calls its attention through the registry.",
        "The engine looks at each model when it is made, and either serves it token for token or",
        "refuses it with the reason. This page is written by a test (`python -m",
        "tests.models.families --write`), which makes a tiny model with random weights of every",
        f"family that transformers {table['transformers']} has for causal language modelling, and",
        "compares greedy tokens and logits with `generate`.",
        "",
        "A family stands for its tiny model with each of its kinds of layers. A model of the same",
        "family with other settings may be refused; `paged-engine models --check NAME` tells.",
        "Rope of type `longrope` and attention in chunks are served up to the length at which they",
        "begin to differ from ordinary ones.",
        "",
        f"## Identical: {len(rows['identical'])}",
        "",
        *textwrap.wrap(served, 100, break_long_words=False, break_on_hyphens=False),
        "",
        f"## Refused: {len(rows['refused'])}",
        "",
        "| family | reason |",
        "|---|---|",
        *[f"| `{row['family']}` | {row['reason']} |" for row in rows["refused"]],
        "",
        f"## Not tried: {len(rows['not built'])}",
        "",
        "Of these no tiny model could be made, or transformers' own `generate` does not run it.",
        "",
        "| family | reason |",
        "|---|---|",
        *[f"| `{row['family']}` | {row['reason']} |" for row in rows["not built"]],
    ]
    return "\n".join(lines) + "\n"


def write(verdicts: Sequence[Verdict]) -> None:
    """Write table and page."""
    table = table_of(verdicts)
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page_of(table), encoding="utf-8")


def main() -> None:
    """Judge the families that are named, or all, and print it; with --write, keep it."""
    named = [name for name in sys.argv[1:] if name != "--write"]
    verdicts = []
    for family in named or families():
        verdict = judge(family)
        verdicts.append(verdict)
        error = f"{verdict.max_error:.1e}" if verdict.num_tokens else ""
        print(f"{verdict.outcome:10} {family:26} {error or verdict.reason}", flush=True)
    if "--write" in sys.argv and not named:
        write(verdicts)


if __name__ == "__main__":
    main()
