"""A model for an engine of its own, loaded in the way that takes the least time."""

from __future__ import annotations

import os
from typing import Any

from paged_engine.attention import Attend, runs_kernels
from paged_engine.models.default_model import load_model, load_tokenizer, model_folder
from paged_engine.models.devices import choose_device, choose_dtype
from paged_engine.models.llama_checkpoint import read_checkpoint


def load_for_engine(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: Any = "float32",
    device: str | None = None,
    attention: str | Attend | None = None,
    progress: bool = True,
) -> tuple[Any, Any]:
    """What :class:`paged_engine.ContinuousEngine` takes as model, and the tokenizer, if any.

    Args:
        name_or_path: See `default_model.resolve_model`.
        dtype, device: See `devices.choose_dtype` and `devices.choose_device`.
        attention: That the engine will be given; with any, transformers' modules are needed.
        progress: Show what a first use fetches and converts.

    Returns:
        A :class:`LlamaCheckpoint` where it will be run fused, else a model of transformers.

    Raises:
        ModelNotFoundError: The model is missing, incomplete, damaged or unknown.
        InvalidConfigError: There is no such device or type of numbers.
    """
    place = choose_device(device)
    numbers = choose_dtype(dtype, place)
    folder = model_folder(name_or_path, progress=progress)
    model: Any = None
    if attention is None and runs_kernels(place, numbers):
        model = read_checkpoint(folder, numbers)
    if model is None:
        model = load_model(folder, dtype=numbers, device=place)
    return model, load_tokenizer(folder)
