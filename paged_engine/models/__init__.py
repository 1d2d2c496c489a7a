"""Models that the engine can run: any transformers causal LM, a tiny one, the default one."""

from __future__ import annotations

from paged_engine.models.runner import ModelRunner
from paged_engine.models.tiny import TINY_FAMILIES, tiny
from paged_engine.models.transformers_runner import TransformersRunner

__all__ = ["TINY_FAMILIES", "ModelRunner", "TransformersRunner", "tiny"]
