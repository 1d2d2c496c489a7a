"""Llama-like models straight from their files.

transformers takes longer to import its modules and to fill them than a small model takes to say its
first word.  Where a checkpoint is of a family that the fused path knows, and plain, none of that is
needed: its configuration says what is computed, and its tensors are the weights.  Everything else
is left to transformers, and so is saying what is wrong with a checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paged_engine.kv_cache import KVCacheShape
from paged_engine.models.llama_family import (
    CLASS_ENDING,
    FAMILIES,
    LlamaLayer,
    Norm,
    Product,
    Rotation,
)
from paged_engine.models.llama_formula import logits_of
from paged_engine.models.probe import Probe

_WEIGHTS = "model.safetensors"
# Beside these transformers would do more than to read the weights.
_OTHER_FILES = ("adapter_config.json", "model.safetensors.index.json")
# In a configuration these say that more is computed than is known here.
_OTHER_KEYS = ("auto_map", "partial_rotary_factor", "quantization_config", "rope_scaling")


def read_checkpoint(folder: Path, dtype: torch.dtype) -> LlamaCheckpoint | None:
    """The model in a folder; None: transformers has to load it, or to say why it cannot.

    Args:
        folder: As `save_pretrained` leaves it.
        dtype: Of the weights.
    """
    if any((folder / name).exists() for name in _OTHER_FILES):
        return None
    try:
        form = _form_of(json.loads((folder / "config.json").read_text()))
        if form is None:
            return None
        generation = folder / "generation_config.json"
        eos = json.loads(generation.read_text()) if generation.exists() else {}
        ids = form.eos_token_id if (own := eos.get("eos_token_id")) is None else own
        stored = load_file(folder / _WEIGHTS)
    except Exception:  # whatever it is, transformers meets it again, and it is told then
        return None
    if {name: tuple(tensor.shape) for name, tensor in stored.items()} != form.shapes():
        return None
    tensors = {name: tensor.to(dtype) for name, tensor in stored.items()}
    eos_token_ids = frozenset([ids] if isinstance(ids, int) else ids or [])
    return LlamaCheckpoint(folder.name, form, tensors, eos_token_ids)


class LlamaCheckpoint:
    """See :class:`paged_engine.models.llama_family.LlamaModel`; made by `read_checkpoint`.

    Args:
        name: See there.
        form: What is computed.
        tensors: By their names in the checkpoint, of one type.
        eos_token_ids: Tokens that end a text.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        name: str,
        form: Form,
        tensors: dict[str, torch.Tensor],
        eos_token_ids: frozenset[int],
    ) -> None:
        self._form = form
        self._tensors = tensors
        self.name = name
        self.num_layers, self.num_heads = form.num_layers, form.num_heads
        self.kv_shape = KVCacheShape(form.num_layers, form.num_kv_heads, form.head_dim)
        self.vocab_size, self.max_model_len = form.vocab_size, form.max_model_len
        self.eos_token_ids = eos_token_ids
        # a copy, as of norms, since these stay: so the file, which is only mapped, is let go
        self.embedding = tensors["model.embed_tokens.weight"].clone()
        self.dtype = self.embedding.dtype
        self.norm = self._norm("model.norm")
        self.head = Product(self.embedding if form.is_tied else tensors["lm_head.weight"])
        # as transformers computes them, to the bit
        exponents = torch.arange(0, form.head_dim, 2, dtype=torch.float) / form.head_dim
        self.rotation: Rotation = partial(_rotation, 1.0 / (form.rope_theta**exponents))

    def layer(self, number: int) -> LlamaLayer:
        """See :class:`paged_engine.models.llama_family.LlamaModel`."""
        of, has_norms = f"model.layers.{number}.", self._form.has_head_norms
        return LlamaLayer(
            input_norm=self._norm(of + "input_layernorm"),
            q=self._product(of + "self_attn.q_proj"),
            k=self._product(of + "self_attn.k_proj"),
            v=self._product(of + "self_attn.v_proj"),
            o=self._product(of + "self_attn.o_proj"),
            q_norm=self._norm(of + "self_attn.q_norm") if has_norms else None,
            k_norm=self._norm(of + "self_attn.k_norm") if has_norms else None,
            has_rope=self._form.has_rope[number],
            scale=self._form.head_dim**-0.5,
            window=None,
            mlp_norm=self._norm(of + "post_attention_layernorm"),
            gate=self._product(of + "mlp.gate_proj"),
            up=self._product(of + "mlp.up_proj"),
            down=self._product(of + "mlp.down_proj"),
        )

    def release(self, number: int) -> None:
        """See :class:`paged_engine.models.llama_family.LlamaModel`."""
        for name in [n for n in self._tensors if n.startswith(f"model.layers.{number}.")]:
            del self._tensors[name]

    def probe(self, block_size: int) -> Probe:
        """What the model says alone, by its formula."""
        return Probe(
            self.name,
            lambda ids: logits_of(self, ids),
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            device=self.device,
            block_size=block_size,
        )

    def _product(self, name: str) -> Product:
        return Product(self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def _norm(self, name: str) -> Norm:
        return Norm(self._tensors[f"{name}.weight"].clone(), self._form.epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a checkpoint computes, apart from its weights.

    Attributes:
        biased: Products of a layer that have a bias.
        has_rope: For each layer, whether queries and keys are rotated.
        is_tied: Whether the embedding is also the output head.
        eos_token_id: One, several, or None.
    """

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    epsilon: float
    rope_theta: float
    biased: frozenset[str]
    has_head_norms: bool
    has_rope: tuple[bool, ...]
    is_tied: bool
    eos_token_id: int | list[int] | None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of such a checkpoint, and no others."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        products = {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        norms = {"input_layernorm": self.width, "post_attention_layernorm": self.width}
        if self.has_head_norms:
            norms |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.width),
            "model.norm.weight": (self.width,),
        }
        if not self.is_tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.width)
        for number in range(self.num_layers):
            of = f"model.layers.{number}."
            shapes |= {f"{of}{name}.weight": (size,) for name, size in norms.items()}
            shapes |= {f"{of}{name}.weight": shape for name, shape in products.items()}
            shapes |= {f"{of}{name}.bias": products[name][:1] for name in self.biased}
        return shapes


def _rotation(
    frequencies: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    half = positions[:, None].float() * frequencies
    angles = torch.cat((half, half), dim=-1)
    return angles.cos(), angles.sin()


def _form_of(config: dict[str, Any]) -> Form | None:
    """What a `config.json` says; None where it says more than is known here.

    Where transformers' families differ in what they take for granted, it has to be said.

    Raises:
        LookupError, TypeError, ValueError: It says less than is needed.
    """
    names = {family.lower(): f"{family}{CLASS_ENDING}" for family in FAMILIES}
    family, head_dim = config["model_type"], config.get("head_dim")
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    num_layers = config["num_hidden_layers"]
    has_window = (
        config["sliding_window"] if family == "mistral" else config.get("use_sliding_window")
    )
    if (
        config["architectures"] != [names.get(family)]
        or config["hidden_act"] != "silu"
        or any(config.get(key) for key in _OTHER_KEYS)
        or rope.keys() - {"rope_type", "rope_theta"}
        or rope.get("rope_type", "default") != "default"
        or has_window
        or set(config.get("layer_types") or ["full_attention"]) != {"full_attention"}
    ):
        return None
    if family == "qwen3" and head_dim is None:
        raise KeyError("head_dim")
    has_rope = config["no_rope_layers"] if family == "smollm3" else [1] * num_layers
    return Form(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        num_layers=num_layers,
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim or config["hidden_size"] // config["num_attention_heads"],
        max_model_len=config["max_position_embeddings"],
        epsilon=float(config["rms_norm_eps"]),
        rope_theta=float(rope["rope_theta"]),
        biased=frozenset(_biased(family, config)),
        has_head_norms=family == "qwen3",
        has_rope=tuple(bool(has_rope[number]) for number in range(num_layers)),
        is_tied=config["tie_word_embeddings"],
        eos_token_id=config["eos_token_id"],
    )


def _biased(family: str, config: dict[str, Any]) -> list[str]:
    queries = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if family == "qwen2":
        return queries
    found: list[str] = []
    if family != "mistral" and config.get("attention_bias"):
        found += [*queries, "self_attn.o_proj"]
    if family in ("llama", "smollm3") and config.get("mlp_bias"):
        found += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return found
