"""Steps of the fused path that are replayed: the same to the bit as those that are called anew."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.batch import Batch
from paged_engine.errors import InvariantError
from paged_engine.kernels.library import Kernels
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models import LlamaRunner, llama_runner, packed_linear, tiny
from paged_engine.models.llama_family import FAMILIES
from tests.helpers.parity import prompt_of

# Too small for all: requests are preempted, and come back with other blocks.
CONFIG = EngineConfig(block_size=4, num_blocks=20, max_num_batched_tokens=16, max_num_seqs=5)
LENGTHS = (9, 26, 1, 17, 8, 30)
HEAD_CALLS = 2  # kernels of a step behind its layers: the last norm, and the head's product


@pytest.fixture(autouse=True)
def panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taped; another way of multiplying may be faster here."""
    ways = {torch.float32: "floats", torch.bfloat16: "widened_pairs"}
    monkeypatch.setattr(packed_linear, "best_way", lambda kernels, dtype, *_: ways[dtype])


class Run:
    """All steps of an engine, with a model that is taped or not.

    Attributes:
        steps: Of each: how many tokens it had, how many kernels Python called, and the logits.
    """

    def __init__(self, engine: ContinuousEngine) -> None:
        assert isinstance(engine.core.runner, LlamaRunner)
        self.steps: list[tuple[int, int, torch.Tensor]] = []
        runner = engine.core.runner
        forward = runner.forward

        def observed(batch: Batch, cache: PagedKVCache) -> torch.Tensor:
            with counted() as calls:
                logits = forward(batch, cache)
            self.steps.append((batch.num_tokens, len(calls), logits.clone()))
            return logits

        runner.forward = observed  # type: ignore[method-assign]
        for n in LENGTHS:
            params = SamplingParams(max_tokens=14, ignore_eos=True)
            engine.add_request(prompt_of(n, 5), params)
        while engine.has_unfinished:
            engine.step()
        assert any(event.kind == "preempted" for event in engine.log)


@contextmanager
def counted() -> Iterator[list[str]]:
    """What Python calls meanwhile."""
    run, calls = Kernels._run, []

    def counting(self: Kernels, function: object, call: object) -> int:
        calls.append(type(call).__name__)
        return run(self, function, call)

    Kernels._run = counting  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        Kernels._run = run  # type: ignore[method-assign]


def engine_of(family: str, dtype: torch.dtype = torch.float32) -> ContinuousEngine:
    model = tiny(family).to(dtype)
    return ContinuousEngine(model, config=CONFIG)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [name.lower() for name in FAMILIES])
def test_a_replayed_step_is_the_same_to_the_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taped = Run(engine_of(family, dtype)).steps
    monkeypatch.setattr(llama_runner, "MOST_TAPED", 0)
    called = Run(engine_of(family, dtype)).steps
    assert len(taped) == len(called) > 30
    for (tokens, _, logits), (same_tokens, _, expected) in zip(taped, called, strict=True):
        assert tokens == same_tokens and torch.equal(logits, expected)


def test_layers_are_called_from_python_once_for_each_number_of_tokens() -> None:
    seen: set[int] = set()
    for tokens, num_calls, _ in Run(engine_of("llama")).steps:
        assert num_calls == HEAD_CALLS if tokens in seen else num_calls > HEAD_CALLS
        seen.add(tokens)
    assert len(seen) > 5


def test_steps_with_more_tokens_are_not_taped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_runner, "MOST_TAPED", 5)
    steps = Run(engine_of("llama")).steps
    assert all(num_calls > HEAD_CALLS for tokens, num_calls, _ in steps if tokens > 5)
    assert any(num_calls == HEAD_CALLS for tokens, num_calls, _ in steps if tokens <= 5)


def test_other_ways_of_multiplying_are_not_taped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "best_way", lambda *_: "torch")
    assert all(num_calls > 1 for _, num_calls, _ in Run(engine_of("llama")).steps)


# ------------------------------------------------------------------ step by step


def new_cache(runner: LlamaRunner) -> PagedKVCache:
    return PagedKVCache(runner.kv_shape, 4, 4, dtype=runner.dtype, device="cpu")


def prompt(*token_ids: int, first_block: int = 0) -> Batch:
    """One sequence from its first token on, in blocks from `first_block` on."""
    count = len(token_ids)
    num_blocks = -(-count // 4)
    return Batch(
        input_ids=torch.tensor(token_ids),
        positions=torch.arange(count),
        slot_mapping=torch.arange(count) + 4 * first_block,
        block_tables=torch.arange(num_blocks)[None] + first_block,
        context_lens=[count],
        query_starts=[0, count],
        last_indices=torch.tensor([count - 1]),
    )


@pytest.fixture
def runner() -> LlamaRunner:
    runner = ContinuousEngine(tiny("llama"), config=CONFIG).core.runner
    assert isinstance(runner, LlamaRunner)
    return runner


def test_another_cache_is_written_and_read(runner: LlamaRunner) -> None:
    one, other = new_cache(runner), new_cache(runner)
    expected = [runner.forward(prompt(3, 4, 5), one) for _ in range(2)]
    before = one.k.clone()
    got = runner.forward(prompt(3, 4, 5), other)
    assert torch.equal(got, expected[0]) and torch.equal(got, expected[1])
    assert torch.equal(other.k, one.k) and other.k.any()
    one.k.zero_()
    runner.forward(prompt(3, 4, 5, first_block=2), other)
    assert not one.k.any() and torch.equal(other.k[:, 2], before[:, 0])


def test_neither_a_cache_nor_its_tapes_are_kept_by_the_runner_alone(runner: LlamaRunner) -> None:
    for _ in range(3):
        cache = new_cache(runner)
        runner.forward(prompt(3, 4, 5), cache)
        assert len(runner._tapes) == 1
        kept = weakref.ref(cache)
        del cache
        gc.collect()
        assert kept() is None


def test_a_slot_or_block_that_is_none_is_refused_in_a_replayed_step(runner: LlamaRunner) -> None:
    cache = new_cache(runner)
    right = runner.forward(prompt(3, 4, 5), cache)
    wrong = prompt(3, 4, 5)
    wrong.slot_mapping = torch.tensor([0, 1, 16])
    with pytest.raises(InvariantError, match="1 tokens were to be written to slots"):
        runner.forward(wrong, cache)
    wrong = prompt(3, 4, 5)
    wrong.block_tables = torch.tensor([[4]])
    with pytest.raises(InvariantError, match="names block 4"):
        runner.forward(wrong, cache)
    assert torch.equal(runner.forward(prompt(3, 4, 5), cache), right)


def test_each_number_of_threads_has_its_tape(runner: LlamaRunner) -> None:
    cache, num_threads = new_cache(runner), torch.get_num_threads()
    with_all = runner.forward(prompt(3, 4, 5), cache)
    try:
        torch.set_num_threads(num_threads + 1)
        with counted() as calls:
            torch.testing.assert_close(runner.forward(prompt(3, 4, 5), cache), with_all)
        assert len(calls) > HEAD_CALLS
    finally:
        torch.set_num_threads(num_threads)
    assert len(runner._tapes) == 2
