"""Checkpoints that are read without transformers' modules: which, and that they say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from paged_engine import ContinuousEngine, SamplingParams
from paged_engine.attention import get_backend
from paged_engine.errors import ModelNotFoundError, UnsupportedModelError
from paged_engine.models import LlamaRunner, TransformersRunner, llama_runner, loading, tiny
from paged_engine.models.default_model import (
    GENERIC_TOKENIZERS,
    default_model_folder,
    load_tokenizer,
)
from paged_engine.models.llama_checkpoint import LlamaCheckpoint, read_checkpoint
from paged_engine.models.llama_family import LlamaOfTransformers
from paged_engine.models.llama_formula import logits_of
from paged_engine.models.packed_linear import pack_linear
from tests.helpers.parity import Observed, Truth, assert_parity, prompt_of

TOKENIZER = Path(__file__).parents[1] / "gpu" / "tokenizer"

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, heads of another size": ("llama", {"head_dim": 20}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, another norm and base": ("llama", {"rms_norm_eps": 0.1, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0}}),
    "llama, two ends": ("llama", {"eos_token_id": [2, 7]}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "smollm3": ("smollm3", {}),
    "smollm3 with biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
}  # fmt: skip


def saved(folder: Path, family: str = "llama", **values: Any) -> Path:
    """A tiny model in a folder; its norms and biases are no ones and zeros."""
    model = tiny(family, **values)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()


def edit(folder: Path, **values: Any) -> None:
    """Change keys of the configuration; those that are Ellipsis are taken out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def assert_same(ours: Any, theirs: Any) -> None:
    """The same numbers, to the bit, wherever a model keeps them."""
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    elif hasattr(theirs, "__dataclass_fields__"):
        for field in fields(theirs):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name))
    else:
        assert ours == theirs


def assert_same_model(folder: Path, dtype: torch.dtype) -> None:
    ours = read_checkpoint(folder, dtype)
    assert ours is not None
    runner = TransformersRunner(loaded(folder, dtype), get_backend("reference"))
    theirs = LlamaOfTransformers(runner)
    numbers = ("name", "num_layers", "num_heads", "kv_shape", "dtype", "device", "vocab_size")
    for name in (*numbers, "max_model_len", "eos_token_ids", "embedding", "norm", "head"):
        assert_same(getattr(ours, name), getattr(theirs, name))
    for number in range(theirs.num_layers):
        assert_same(ours.layer(number), theirs.layer(number))
    positions = torch.tensor([0, 1, 17, 400])
    for angle, expected in zip(ours.rotation(positions), theirs.rotation(positions), strict=True):
        assert_same(angle, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_checkpoint_is_read_as_transformers_reads_it(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family, values = PLAIN[name]
    assert_same_model(saved(tmp_path, family, **values), dtype)


@pytest.mark.real_model
def test_so_is_the_default_model() -> None:
    assert_same_model(default_model_folder(progress=False), torch.float32)


def test_a_configuration_of_an_older_transformers_is_read_too(tmp_path: Path) -> None:
    edit(saved(tmp_path), rope_parameters=..., rope_theta=500.0, rope_scaling=None)
    assert_same_model(tmp_path, torch.float32)


@pytest.mark.parametrize("ids", [5, [5, 6], None])
def test_where_texts_end_is_said_by_the_way_of_generating_first(ids: Any, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert_same_model(tmp_path, torch.float32)


# ------------------------------------------------------------------ what is left to transformers


def shard(folder: Path) -> None:
    tiny().save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def set_keys(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **values)


SCALED = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
OTHERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "another family": ("phi3", lambda folder: None),
    "another class": ("llama", set_keys(architectures=["LlamaModel"])),
    "code of its own": ("llama", set_keys(auto_map={"AutoModelForCausalLM": "mine.Mine"})),
    "quantised": ("llama", set_keys(quantization_config={"quant_method": "gptq"})),
    "another activation": ("llama", set_keys(hidden_act="gelu")),
    "scaled positions": ("llama", set_keys(rope_parameters=SCALED)),
    "scaled positions, as once": ("llama", set_keys(rope_scaling=SCALED)),
    "half of a head is turned": ("llama", set_keys(partial_rotary_factor=0.5)),
    "a window": ("mistral", lambda folder: None),
    "a window that goes without saying": ("mistral", set_keys(sliding_window=...)),
    "windows": ("qwen2", set_keys(use_sliding_window=True)),
    "windows of some layers": ("qwen3", set_keys(layer_types=["sliding_attention"] * 2)),
    "a size that goes without saying": ("qwen3", set_keys(head_dim=...)),
    "heads tied or not": ("llama", set_keys(tie_word_embeddings=...)),
    "no end": ("llama", set_keys(eos_token_id=...)),
    "no rotation said": ("smollm3", set_keys(no_rope_layers=...)),
    "rotations of too few layers": ("smollm3", set_keys(no_rope_layers=[1])),
    "an adapter": ("llama", lambda folder: (folder / "adapter_config.json").write_text("{}")),
    "shards": ("llama", shard),
    "no weights": ("llama", lambda folder: (folder / "model.safetensors").unlink()),
    "a torn file": ("llama", lambda folder: (folder / "model.safetensors").write_bytes(b"{}")),
    "no configuration": ("llama", lambda folder: (folder / "config.json").write_text("{")),
    "a weight is missing": ("llama", change_tensors(lambda t: t.pop("model.norm.weight"))),
    "a weight too many": ("llama", change_tensors(lambda t: t.update(more=torch.ones(1)))),
    "another size": ("llama", change_tensors(
        lambda t: t.update({"model.norm.weight": torch.ones(3)}))),
    "a bias that nobody adds": ("mistral", change_tensors(
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_left_to_transformers(name: str, tmp_path: Path) -> None:
    family, change = OTHERS[name]
    window = 12 if name == "a window" else None
    saved(tmp_path, family, **({"sliding_window": window} if family == "mistral" else {}))
    was_plain = read_checkpoint(tmp_path, torch.float32) is not None
    assert was_plain == (name not in ("another family", "a window"))
    change(tmp_path)
    assert read_checkpoint(tmp_path, torch.float32) is None


def test_and_it_says_what_is_wrong_with_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path)
    change_tensors(lambda tensors: tensors.pop("model.norm.weight"))(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"1 weights are missing, model\.norm\.weight"):
        ContinuousEngine.from_pretrained(str(tmp_path), device="cpu", num_blocks=8)


# ------------------------------------------------------------------ the engine


def engine_of(folder: Path, **options: Any) -> ContinuousEngine:
    options = {"device": "cpu", "num_blocks": 48, "block_size": 4, **options}
    return ContinuousEngine.from_pretrained(str(folder), **options)


@pytest.mark.parametrize("name", PLAIN)
def test_an_engine_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    family, values = PLAIN[name]
    saved(tmp_path, family, **values)
    engine = engine_of(tmp_path, max_num_batched_tokens=16)
    assert isinstance(engine.core.runner, LlamaRunner)
    assert engine.core.runner.name == tmp_path.name
    observed, params = Observed(engine), SamplingParams(max_tokens=12)
    asked = {engine.add_request(prompt_of(n, 5), params): params for n in (9, 26, 1, 17)}
    observed.run()
    assert_parity(observed, Truth(loaded(tmp_path)), asked)


def test_transformers_is_not_even_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from paged_engine import ContinuousEngine, SamplingParams\n"
        "engine = ContinuousEngine.from_pretrained(sys.argv[1], device='cpu', num_blocks=8)\n"
        "engine.generate([[5, 6, 7]], SamplingParams(max_tokens=2))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('transformers')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved(tmp_path))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("attention", ["reference", "sdpa", "cpu"])
def test_with_attention_of_the_users_choice_transformers_modules_run(
    attention: str, tmp_path: Path
) -> None:
    engine = engine_of(saved(tmp_path), attention=attention)
    assert isinstance(engine.core.runner, TransformersRunner)


def test_without_kernels_transformers_modules_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    assert isinstance(loading.load_for_engine(tmp_path, device="cpu")[0], LlamaCheckpoint)
    monkeypatch.setattr(loading, "runs_kernels", lambda device, dtype: False)
    assert isinstance(loading.load_for_engine(tmp_path, device="cpu")[0], PreTrainedModel)


def test_the_probe_holds_the_runner_against_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(*arguments: Any) -> Any:
        right = pack_linear(*arguments)
        return lambda x, out=None: 2 * right(x)

    monkeypatch.setattr(llama_runner, "pack_linear", doubled)
    saved(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"{tmp_path.name} gives other logits packed"):
        engine_of(tmp_path)
    engine_of(tmp_path, probe=False)


def test_weights_are_let_go_when_they_are_packed(tmp_path: Path) -> None:
    model = read_checkpoint(saved(tmp_path), torch.float32)
    assert model is not None
    for number in range(model.num_layers):
        model.layer(number)
        model.release(number)
    assert not [name for name in model._tensors if ".layers." in name]


# ------------------------------------------------------------------ the formula

FORMULAS: dict[str, tuple[str, dict[str, Any]]] = PLAIN | {
    "a window": ("mistral", {"sliding_window": 6}),
    "windows of some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention"]}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_gives_the_logits_of_transformers(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family, values = FORMULAS[name]
    model = loaded(saved(tmp_path, family, **values), dtype)
    ids = torch.tensor(prompt_of(30, 5))
    with torch.inference_mode():
        expected = model(input_ids=ids[None], use_cache=False).logits[0]
        ours = LlamaOfTransformers(TransformersRunner(model, get_backend("reference")))
        got = logits_of(ours, ids)
    allowed = 1e-5 if dtype == torch.float32 else 0.05
    assert float((got - expected).abs().max()) <= allowed * float(expected.abs().max())


# ------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("kind", [*GENERIC_TOKENIZERS, "GPT2Tokenizer", None])
def test_a_tokenizer_is_the_one_that_transformers_would_choose(
    kind: str | None, tmp_path: Path
) -> None:
    saved(tmp_path)
    for path in TOKENIZER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None and type(ours) is type(theirs)
    text = "The sky is blue because  of\nscattering: déjà vu!"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.init_kwargs.keys() == theirs.init_kwargs.keys()
