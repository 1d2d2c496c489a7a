"""Who does all exercises of notebooks 04 to 08 has an engine that gives transformers' tokens.

The engine is put together from the solutions alone.  It is held against `generate` with the
package's own measure, tokens and logits, on tiny models and on the default model.  So are its
parts, all at once inside the package's engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.lessons import num_lines, own_request, without_blocks
from paged_engine.lessons.solutions import nb05, nb06, nb07, nb08
from paged_engine.models import TransformersRunner
from tests.helpers.parity import (
    TOLERANCE,
    Observed,
    ParityError,
    Tally,
    Truth,
    assert_parity,
    prompt_of,
    tiny_truth,
)
from tests.notebooks.lesson import REPO, cells_of
from tests.notebooks.test_style import definitions

SOLUTIONS = REPO / "paged_engine" / "lessons" / "solutions"
ABOUT = 250  # lines, as the series promises
# Those whose attention asks for no windows and no caps, which the reader's refuses.
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "opt", "phi3")

_Pool: Any = nb06.BlockPool  # as they stand in the notebooks, where nothing is annotated
_Engine: Any = nb08.Engine
_PagedModel: Any = nb08.PagedModel


@dataclass
class Crowd:
    """Who comes after which step, and what they want.

    Attributes:
        coming: For each id (prompt, max_tokens, step after which it is added).
        limits: Of the scheduler.
        num_blocks, block_size: Of the pool.
    """

    coming: dict[str, tuple[list[int], int, int]]
    limits: dict[str, int]
    num_blocks: int
    block_size: int

    @property
    def asked(self) -> dict[str, SamplingParams]:
        return {name: SamplingParams(max_tokens=most) for name, (_, most, _) in self.coming.items()}

    def perform(
        self, add: Callable[..., Any], step: Callable[[], Any], is_busy: Callable[[], Any]
    ) -> int:
        """All of it; returns the number of steps."""
        done = 0
        while is_busy() or any(after >= done for _, _, after in self.coming.values()):
            for name, (prompt, most, after) in self.coming.items():
                if after == done:
                    add(name, prompt, most)
            step()
            done += 1
            assert done < 2_000, "it does not come to an end"
        return done


def tiny_crowd(block_size: int, num_blocks: int, budget: int) -> Crowd:
    """Ragged prompts, some of them late; not all fit at once."""
    lengths = (9, 17, 1, 24, 2, 12)
    coming = {
        f"r{i}": (prompt_of(length, i), 12 if i % 3 else 7, max(0, 2 * (i - 2)))
        for i, length in enumerate(lengths)
    }
    return Crowd(
        coming, {"max_num_seqs": 4, "max_num_batched_tokens": budget}, num_blocks, block_size
    )


class Readers:
    """The reader's engine as the measure sees an engine: final outputs, and logits.

    Args:
        attention: Of the reader, or a wrong one.
    """

    def __init__(self, truth: Truth, crowd: Crowd, attention: Any = nb07.paged_attention) -> None:
        self.crowd = crowd
        self.rows: dict[str, dict[int, list[torch.Tensor]]] = {}
        pool = _Pool(crowd.num_blocks, crowd.block_size)
        self.runner = TransformersRunner(truth.model, attention)
        self.model = _PagedModel(self.runner, pool)
        self.forward = self.runner.forward
        self.runner.forward = self._keep  # type: ignore[method-assign]
        self.engine = _Engine(nb05.Scheduler(**crowd.limits), pool, self._compute)

    def _compute(self, scheduled: dict[Any, int]) -> Any:
        self.scheduled = scheduled
        return self.model(scheduled)

    def _keep(self, batch: Any, cache: Any) -> torch.Tensor:
        logits = self.forward(batch, cache)
        for row, (request, num_tokens) in zip(logits, self.scheduled.items(), strict=True):
            position = request.num_computed_tokens + num_tokens - 1
            kept = self.rows.setdefault(request.request_id, {})
            kept.setdefault(position, []).append(row.float().clone())
        return logits

    def run(self) -> None:
        engine, eos = self.engine, self.runner.eos_token_ids
        self.crowd.perform(
            lambda name, prompt, most: engine.add(name, prompt, most, eos),
            engine.step,
            lambda: engine.door or engine.inside,
        )
        assert engine.pool.num_free == engine.pool.num_blocks, "blocks were lost"

    @property
    def final(self) -> dict[str, Any]:
        return {name: _output(r) for name, r in self.engine.requests.items() if r.is_finished}

    def logits_of(self, name: str) -> dict[int, list[torch.Tensor]]:
        return self.rows.get(name, {})


def _output(request: Any) -> Any:
    """A finished request as an output of the package's, as far as the measure looks at it."""
    known, start = tuple(request.token_ids), request.num_prompt_tokens
    completion = SimpleNamespace(
        index=0, token_ids=known[start:], finish_reason=request.status.value
    )
    return SimpleNamespace(prompt_token_ids=known[:start], completions=(completion,))


def package_with_readers_parts(truth: Truth, crowd: Crowd) -> Observed:
    """The package's engine on the reader's request, scheduler, pool and attention."""
    config = EngineConfig(block_size=crowd.block_size, enable_prefix_caching=False, **crowd.limits)
    engine = ContinuousEngine(
        truth.model,
        config=config,
        request=own_request(nb08.Request),
        scheduler=without_blocks(nb05.Scheduler(**crowd.limits)),
        block_pool=_Pool(crowd.num_blocks, crowd.block_size),
        attention=nb07.paged_attention,
    )
    observed = Observed(engine)
    crowd.perform(
        lambda name, prompt, most: engine.add_request(prompt, crowd.asked[name], request_id=name),
        observed.step,
        lambda: engine.has_unfinished,
    )
    assert engine.pool.num_free == crowd.num_blocks, "blocks were lost"
    return observed


# ------------------------------------------------------------------ how large it is


def test_the_readers_engine_has_about_250_lines() -> None:
    """And `PARTS`, which is counted, is all of it: nothing else of the lessons is used."""
    total = sum(num_lines(*parts) for parts in nb08.PARTS.values())
    assert abs(total - ABOUT) <= 10, f"{total} lines"
    counted = {part.__name__ for parts in nb08.PARTS.values() for part in parts}
    for module in (nb05, nb06, nb07, nb08):
        assert module.__file__ is not None
    own = {
        name for name in vars(nb08) if getattr(vars(nb08)[name], "__module__", "") == nb08.__name__
    }
    assert own <= counted, f"not counted: {own - counted}"


def test_what_the_notebook_gives_is_what_is_counted() -> None:
    """The classes that notebook 08 gives stand in its cells as they stand among the solutions."""
    kept = definitions((SOLUTIONS / "nb08.py").read_text(encoding="utf-8"))
    given: dict[str, str] = {}
    for cell in cells_of(REPO / "notebooks" / "08_engine.ipynb"):
        if cell.kind == "code" and not cell.tagged("exercise"):
            given |= {n: t for n, t in definitions(cell.source).items() if "Wrong" not in t}
    for name in ("Log", "PagedModel", "Engine"):
        assert given[name] == kept[name], f"{name} is another in the notebook"


# ------------------------------------------------------------------ tiny models


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readers_engine_gives_the_tokens_of_generate(family: str) -> None:
    truth, crowd = tiny_truth(family), tiny_crowd(4, 24, 16)
    readers = Readers(truth, crowd)
    readers.run()
    tally = assert_parity(readers, truth, crowd.asked)  # type: ignore[arg-type]
    assert tally.num_rows > tally.num_tokens >= 40 and not tally.near_ties
    assert any(len(positions) > 1 for positions in readers.rows.values())


@pytest.mark.parametrize("block_size, num_blocks, budget", [(1, 40, 7), (3, 13, 64), (16, 4, 5)])
def test_whatever_the_blocks_and_the_budget(block_size: int, num_blocks: int, budget: int) -> None:
    truth, crowd = tiny_truth("llama"), tiny_crowd(block_size, num_blocks, budget)
    readers = Readers(truth, crowd)
    readers.run()
    assert_parity(readers, truth, crowd.asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_parts_at_once_in_the_package_give_the_tokens_of_generate(family: str) -> None:
    truth, crowd = tiny_truth(family), tiny_crowd(4, 24, 16)
    observed = package_with_readers_parts(truth, crowd)
    tally = assert_parity(observed, truth, crowd.asked)
    assert tally.num_rows > tally.num_tokens >= 40 and not tally.near_ties


def test_the_log_is_the_packages_event_by_event() -> None:
    truth, crowd = tiny_truth("llama"), tiny_crowd(4, 64, 16)
    readers = Readers(truth, crowd)
    readers.run()
    config = EngineConfig(block_size=4, enable_prefix_caching=False, **crowd.limits)
    pool = _Pool(64, 4)
    package = ContinuousEngine(truth.model, config=config, block_pool=pool, clock=lambda: 0.0)

    def add(name: str, prompt: list[int], most: int) -> None:
        package.add_request(prompt, SamplingParams(max_tokens=most, seed=0), request_id=name)

    crowd.perform(add, package.step, lambda: package.has_unfinished)
    assert len(package.log) > 200
    assert readers.engine.log == package.log


def test_in_a_small_pool_somebody_waits_at_the_door() -> None:
    crowd = tiny_crowd(4, 9, 64)
    readers = Readers(tiny_truth("llama"), crowd)
    seen: list[int] = []
    let_in = readers.engine.let_in

    def watched() -> None:
        let_in()
        seen.append(len(readers.engine.door))

    readers.engine.let_in = watched
    readers.run()
    assert max(seen) > 0
    assert_parity(readers, tiny_truth("llama"), crowd.asked)  # type: ignore[arg-type]


def test_the_measure_sees_a_wrong_attention() -> None:
    """Otherwise all of the above would say nothing."""

    def forgets_the_first(
        q: Any, k: Any, v: Any, layer: int, cache: Any, batch: Any, **how: Any
    ) -> Any:
        out = nb07.paged_attention(q, k, v, layer, cache, batch, **how)  # type: ignore[no-untyped-call]
        return out * 0.999 if len(out) < 5 else out

    truth, crowd = tiny_truth("llama"), tiny_crowd(4, 24, 16)
    readers = Readers(truth, crowd, forgets_the_first)
    readers.run()
    with pytest.raises(ParityError):
        assert_parity(readers, truth, crowd.asked)  # type: ignore[arg-type]


# ------------------------------------------------------------------ the default model


@pytest.fixture(scope="module")
def loaded() -> tuple[Truth, Any]:
    from paged_engine.models.default_model import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(None, dtype=torch.float32, progress=False)
    return Truth(model), tokenizer


@pytest.fixture(scope="module")
def real_crowd(loaded: tuple[Truth, Any]) -> Crowd:
    texts = {
        "sky": ("The sky is blue because", 10, 0),
        "code": ("def fibonacci(n):\n", 12, 0),
        "tea": ("To make a good cup of tea, first", 3, 0),
        "long": (
            "In the beginning of the nineteenth century, travelling from one town to the next "
            "took days. Roads were bad, inns were few, and",
            6,
            2,
        ),
        "France": ("The capital of France is", 8, 5),
    }
    coming = {name: (loaded[1].encode(text), *rest) for name, (text, *rest) in texts.items()}
    limits = {"max_num_seqs": 3, "max_num_batched_tokens": 16}
    return Crowd(coming, limits, num_blocks=6, block_size=16)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.real_model
def test_on_the_default_model_as_well(loaded: tuple[Truth, Any], real_crowd: Crowd) -> None:
    readers = Readers(loaded[0], real_crowd)
    readers.run()
    tally = Tally()
    # logits are up to 45 there: transformers' own two ways differ by almost the tolerance
    assert_parity(readers, loaded[0], real_crowd.asked, tally, 3 * TOLERANCE)  # type: ignore[arg-type]
    assert tally.num_tokens == 39 and not tally.near_ties


@pytest.mark.slow
@pytest.mark.real_model
def test_all_parts_at_once_on_the_default_model(
    loaded: tuple[Truth, Any], real_crowd: Crowd
) -> None:
    observed = package_with_readers_parts(loaded[0], real_crowd)
    tally = Tally()
    assert_parity(observed, loaded[0], real_crowd.asked, tally, 3 * TOLERANCE)
    assert tally.num_tokens == 39 and not tally.near_ties
