"""From options to an engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paged_engine.cli.arguments import TINY, engine_config
from paged_engine.cli.terminal import note, shows_progress
from paged_engine.config import EngineConfig

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine


class ByteTokenizer:
    """Every byte is a token: all that a model of random numbers needs."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode(errors="replace")


def load_engine(
    options: argparse.Namespace, *, name: str | None = None, **config: Any
) -> ContinuousEngine:
    """The engine that the options describe.

    Args:
        options: With those of `add_engine_arguments`.
        name: The model; None: that of the options.
        config: More fields of :class:`EngineConfig`.

    Raises:
        PagedEngineError: A value is wrong, or the model cannot be had or served.
    """
    checked = EngineConfig(**engine_config(options), **config)
    name = name or options.model
    device = None if options.device == "auto" else options.device
    if name == TINY:
        return _tiny_engine(device, options.dtype, checked)

    from paged_engine.models.default_model import resolve_model

    progress = shows_progress(options)
    found = resolve_model(name, progress=progress)  # a wrong name is told before torch is there
    if progress:
        note(f"loading {found} ...")

    from paged_engine.engine import ContinuousEngine
    from paged_engine.models.loading import load_for_engine

    model, tokenizer = load_for_engine(found, dtype=options.dtype, device=device, progress=progress)
    return ContinuousEngine(model, tokenizer, checked, owns_model=True)


def _tiny_engine(device: str | None, dtype: str, config: EngineConfig) -> ContinuousEngine:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.models.devices import choose_device, choose_dtype
    from paged_engine.models.tiny_models import tiny

    place = choose_device(device)
    model = tiny().to(place, choose_dtype(dtype, place))
    return ContinuousEngine(model, ByteTokenizer(), config)
