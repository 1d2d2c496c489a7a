"""What readers build, all of it together, in the engine with the default model.

The classes are those of the notebooks' cells, with the solutions of notebooks 04 and 05 as their
methods.  On mixed prompts, with chunks and with a request that is added while the others decode,
they give the package's own tokens.
"""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.lessons import own_request, without_blocks
from paged_engine.lessons.adapters import WithoutBlocks
from paged_engine.lessons.solutions import nb04, nb05
from paged_engine.request import RequestStatus
from tests.notebooks.lesson import REPO, cells_of

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

PROMPTS = [
    "The sky is blue because",
    "1, 2, 3, 5, 8, 13,",
    "In the beginning of the nineteenth century, travelling from one town to the next took days. "
    "Roads were bad, inns were few, and",
    "Once upon a time",
    "def fibonacci(n):\n",
]
LENGTHS = [9, 14, 6, 1, 11]
LATE = "The capital of France is"
AFTER = 5  # steps
SEATS, BUDGET = 3, 16  # fewer than come, and less than the third prompt


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    from paged_engine.models.default_model import load_model_and_tokenizer

    return load_model_and_tokenizer(None, dtype=torch.float32, progress=False)


def readers_class(stem: str, name: str, solutions: ModuleType, methods: list[str]) -> Any:
    """A class as a cell of a notebook begins it, and as its solutions complete it."""
    cells = cells_of(REPO / "notebooks" / f"{stem}.ipynb")
    (cell,) = [c for c in cells if c.kind == "code" and c.source.startswith(f"class {name}:")]
    names: dict[str, Any] = {"RequestStatus": RequestStatus, "deque": deque}
    exec(compile(cell.source, stem, "exec"), names)
    for method in methods:
        setattr(names[name], method, getattr(solutions, method))
    return names[name]


def readers_request() -> Any:
    methods = ["set_status", "append_token"]
    return own_request(readers_class("04_request_lifecycle", "Request", nb04, methods))


def readers_scheduler() -> Any:
    made = readers_class("05_scheduler", "Scheduler", nb05, ["schedule", "update"])
    return without_blocks(made(SEATS, BUDGET))


def engine(loaded: tuple[Any, Any], **parts: Any) -> ContinuousEngine:
    config = EngineConfig(
        num_blocks=64,
        max_num_seqs=SEATS,
        max_num_batched_tokens=BUDGET,
        enable_prefix_caching=False,
    )
    return ContinuousEngine(loaded[0], loaded[1], config, **parts)


def serve(own: ContinuousEngine) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Tokens and reason of the end, by request; one comes late."""
    for number, (prompt, most) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        own.add_request(prompt, SamplingParams(max_tokens=most), request_id=str(number))
    ended, step = {}, 0
    while own.has_unfinished:
        for output in own.step():
            ended[output.request_id] = (output.token_ids, output.finish_reason)
        step += 1
        if step == AFTER:
            own.add_request(LATE, SamplingParams(max_tokens=8), request_id="late")
    assert own.pool.num_free == 64
    return ended


def batches(own: ContinuousEngine) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = {}
    scheduled: list[Any] = own.log.of_kind("scheduled")
    for event in scheduled:
        found.setdefault(event.step, {})[event.request_id] = event.num_tokens
    return found


@pytest.fixture(scope="module")
def wanted(loaded: tuple[Any, Any]) -> tuple[dict[str, Any], dict[int, dict[str, int]]]:
    """By the package's own parts."""
    package = engine(loaded)
    ended = serve(package)
    made = batches(package)
    assert any("late" in batch and len(batch) == SEATS for batch in made.values())
    assert sum(batch.get("2", 0) > 1 for batch in made.values()) > 1  # it comes in chunks
    assert (
        ended["late"][0] == engine(loaded).generate(LATE, SamplingParams(max_tokens=8))[0].token_ids
    )
    return ended, made


WAYS: dict[str, Any] = {
    "the request of notebook 04": lambda: {"request": readers_request()},
    "the scheduler of notebook 05": lambda: {"scheduler": readers_scheduler()},
    "both": lambda: {"request": readers_request(), "scheduler": readers_scheduler()},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_what_the_reader_built_gives_the_same_tokens(
    way: str, loaded: tuple[Any, Any], wanted: tuple[dict[str, Any], dict[int, dict[str, int]]]
) -> None:
    parts = WAYS[way]()
    own = engine(loaded, **parts)
    assert isinstance(own.scheduler, WithoutBlocks) == ("scheduler" in parts)
    assert serve(own) == wanted[0]
    assert batches(own) == wanted[1]


def test_an_abort_in_the_middle_leaves_the_others_as_they_are(
    loaded: tuple[Any, Any], wanted: tuple[dict[str, Any], dict[int, dict[str, int]]]
) -> None:
    own = engine(loaded, **WAYS["both"]())
    for number, (prompt, most) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        own.add_request(prompt, SamplingParams(max_tokens=most), request_id=str(number))
    own.step()
    own.abort("1")  # it runs
    own.abort("4")  # it waits
    ended = {}
    while own.has_unfinished:
        ended |= {o.request_id: (o.token_ids, o.finish_reason) for o in own.step()}
    assert [ended[name][1] for name in "14"] == ["abort", "abort"]
    assert [ended[name] for name in "023"] == [wanted[0][name] for name in "023"]
    assert own.pool.num_free == 64
