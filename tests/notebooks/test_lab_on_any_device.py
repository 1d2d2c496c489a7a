"""Notebook 09 runs unchanged on a GPU: it names no device and takes no tensor out of the engine.

What it shows of the real model are counts, which must not hang on the tokens: other number formats
and processors choose others where two are nearly alike.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from tests.notebooks.lesson import REPO, cells_of

LAB = REPO / "notebooks" / "09_cache_visualizer.ipynb"
WORDS = {"cpu", "cuda", "mps"}
HOME = {"cpu", "cuda", "to", "numpy", "item", "tolist", "detach", "device", "dtype"}
MODULES = {"torch", "numpy", "transformers"}


def tied_to_a_device(code: str) -> list[str]:
    """What in it names a device, a number format or a way to take a tensor home."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in HOME:
            found.append(f".{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in ("device", "dtype", "attention"):
            found.append(f"{node.arg}=")
        elif isinstance(node, ast.Constant) and str(node.value).split(":")[0] in WORDS:
            found.append(repr(node.value))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found += [name for name in names if name.split(".")[0] in MODULES]
    return found


def test_no_cell_names_a_device_or_takes_a_tensor_home() -> None:
    for cell in cells_of(LAB):
        if cell.kind == "code":
            assert tied_to_a_device(cell.source) == [], cell.source


@pytest.mark.parametrize(
    "code",
    [
        "engine.core.cache.keys.cpu()",
        "logits[0].argmax().item()",
        "cache.numpy()",
        "model.to('cuda:0')",
        "ContinuousEngine.from_pretrained(device='cpu')",
        "ContinuousEngine.from_pretrained(dtype=wanted)",
        "place = 'cuda'",
        "import torch",
        "from torch import nn",
    ],
)
def test_a_cell_that_does_is_seen(code: str) -> None:
    assert tied_to_a_device(code)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_story_of_the_real_model_does_not_hang_on_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a coarser number format: whatever it says, every assert holds."""
    from paged_engine import ContinuousEngine

    usual = ContinuousEngine.from_pretrained

    def coarser(*args: Any, **options: Any) -> ContinuousEngine:
        made.append(usual(*args, dtype="bfloat16", **options))
        return made[-1]

    made: list[ContinuousEngine] = []
    monkeypatch.setattr(ContinuousEngine, "from_pretrained", coarser)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells_of(LAB):
        if cell.kind == "code" and not any("hunt" in tag for tag in cell.tags):
            exec(compile(cell.source, "<cell>", "exec"), names)
    assert names["real"].core.runner is made[0].core.runner
    assert str(made[0].core.runner.dtype) == "torch.bfloat16"
    kinds = ("preempted", "aborted")
    deeds = [(e.kind, e.request_id) for e in names["real_log"] if e.kind in kinds]
    assert deeds == [("aborted", "days"), ("preempted", "late"), ("preempted", "Paris")]
