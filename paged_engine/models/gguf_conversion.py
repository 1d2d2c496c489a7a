"""Turn a GGUF file of a llama model into a folder that ``from_pretrained`` opens.

transformers can open a GGUF file by itself, but parses it three times over and dequantises
it at every load, which takes about twenty seconds.  This does it once, and to the same bits:
GGUF is llama.cpp's format, and differs from a transformers checkpoint in what things are
called, in how numbers are packed, and in the order of the rows of two matrices.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_engine.models.cache import Progress

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

_TOP_LEVEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where it is tied to the embedding
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
_CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


def convert_gguf(gguf_file: Path, folder: Path, progress: Progress) -> None:
    """Write ``gguf_file``, a llama model in GGUF, to ``folder`` as float32 safetensors.

    float32 because a 4-bit weight unpacks to scale * integer + minimum, which float16 would
    round.  The folder gets the weights, the configurations and the tokenizer.

    Raises:
        ValueError: the file is of another architecture or tokenizer.
        OSError: a file cannot be read or written.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    kind = (_field(reader, "general.architecture"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("llama", "smollm"):
        raise ValueError(f"{gguf_file} is {kind}; only ('llama', 'smollm') can be converted")
    config = _config(reader)
    special_ids = {key: id for key, id in config.items() if key.endswith("_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", special_ids)
    _write_tokenizer(reader, folder)
    _write_weights(reader, folder / "model.safetensors", config, progress)


def _field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    def llama(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": llama("context_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "head_dim": llama("embedding_length") // llama("attention.head_count"),
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        # GGUF holds it as a float32, and 1e-05 is the shortest number that is the same float32.
        "rms_norm_eps": float(f"{llama('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": llama("rope.freq_base")},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }
    for token, gguf_name in _SPECIAL_TOKENS.items():
        config[f"{token}_id"] = _field(reader, f"tokenizer.ggml.{gguf_name}_token_id")
    return config


def _write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    # What "smollm" stands for.  transformers' own loader knows no such name and leaves out the
    # digits, which makes it split the spaces before a number unlike what the model learned.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment, unused-ignore]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment, unused-ignore]
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, token_type in zip(vocabulary, types, strict=True)
            if token_type == _CONTROL_TOKEN
        ]
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    settings: dict[str, Any] = {}
    for name, gguf_name in (*_SPECIAL_TOKENS.items(), ("unk_token", "unknown")):
        token_id = _field(reader, f"tokenizer.ggml.{gguf_name}_token_id")
        settings[name] = None if token_id is None else vocabulary[token_id]
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_max_length"] = _field(reader, "llama.context_length")
    settings["clean_up_tokenization_spaces"] = False  # decoding gives back what was encoded
    _write_json(folder / "tokenizer_config.json", settings)
    if template := _field(reader, "tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def _write_weights(
    reader: GGUFReader, path: Path, config: dict[str, Any], progress: Progress
) -> None:
    """Write the weights tensor by tensor, so that only one of them is in memory at a time.

    A safetensors file is eight bytes of length, that much JSON saying what lies where, and
    then the tensors end to end.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF names the inner one first
        start, end = end, end + 4 * math.prod(shape)
        name = _transformers_name(tensor.name)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as file, progress.bar("Converting the model", end) as update:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in reader.tensors:
            weights = _dequantised(tensor, config)
            file.write(weights.data)
            update(weights.nbytes)


def _transformers_name(gguf_name: str) -> str:
    if gguf_name in _TOP_LEVEL_NAMES:
        return _TOP_LEVEL_NAMES[gguf_name]
    block, layer, part, weight = gguf_name.split(".")
    if block != "blk" or part not in _LAYER_NAMES:
        raise ValueError(f"the GGUF file has a tensor {gguf_name!r}, which no llama model has")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{weight}"


def _dequantised(tensor: Any, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    import numpy as np
    from gguf import dequantize

    weights = dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for part, count in heads.items():
        if f".{part}." in tensor.name:
            # Rotary embedding turns pairs of rows of each head.  llama.cpp pairs neighbours,
            # transformers the first half with the second.
            pairs = weights.reshape(count, -1, 2, weights.shape[-1])
            weights = pairs.swapaxes(1, 2).reshape(weights.shape)
    return np.ascontiguousarray(weights, dtype="<f4")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
