"""Models that the engine can run: any transformers causal LM, a tiny one, the default one.

Names are imported when they are first used: fetching the default model needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "LlamaRunner": "llama_runner",
    "TINY_FAMILIES": "tiny_models",
    "ModelRunner": "runner",
    "TransformersRunner": "transformers_runner",
    "tiny": "tiny_models",
}
__all__ = ["TINY_FAMILIES", "LlamaRunner", "ModelRunner", "TransformersRunner", "tiny"]

if TYPE_CHECKING:
    from paged_engine.models.llama_runner import LlamaRunner
    from paged_engine.models.runner import ModelRunner
    from paged_engine.models.tiny_models import TINY_FAMILIES, tiny
    from paged_engine.models.transformers_runner import TransformersRunner


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
