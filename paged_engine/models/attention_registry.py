"""Putting another attention function in the place of a model's own, for the time of a call.

transformers looks its attention function up by name in a registry at every call.  A model's
configuration, or several of them, says the name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


@contextmanager
def attention_implementation(configs: list[Any], name: str) -> Iterator[None]:
    """Inside, models with these configurations call the function registered as `name`."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


def attention_configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that some module of the model reads."""
    found = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())
