"""Logits that are no numbers end their own request, and nothing of it reaches anybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models.tiny_models import tiny
from tests.engine.engine_helpers import (
    Bystanders,
    ToyPool,
    ToyScheduler,
    assert_idle,
    assert_still_serves,
    expected,
    greedy,
    oracle_engine,
    run,
)
from tests.helpers.fakes import OracleModel


class Spoiled(OracleModel):
    """Gives `value` for sequences whose last computed token is `spoiled`."""

    def __init__(self, value: float, spoiled: int = 13) -> None:
        super().__init__()
        self.value = value
        self.spoiled = spoiled

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        logits = super().forward(batch, cache)
        rows = batch.input_ids[batch.last_indices] == self.spoiled
        logits[rows, 5] = self.value
        if self.value == -float("inf"):
            logits[rows] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_k": 3}, {"logprobs": 2}], ids=str)
def test_only_the_request_whose_logits_are_unusable_ends(value: float, params: Any) -> None:
    engine = oracle_engine(Spoiled(value))
    bystanders = Bystanders(engine)
    engine.add_request([1, 2, 13], SamplingParams(max_tokens=8, **params), request_id="bad")
    (last,) = bystanders.finish()
    assert (last.request_id, last.finish_reason, last.token_ids) == ("bad", "error", ())
    assert last.timing.first_token is None
    assert [e.reason for e in engine.log.of_kind("finished")].count("error") == 1  # type: ignore[attr-defined]
    assert_still_serves(engine)


def test_one_infinity_below_is_a_forbidden_token_and_no_error() -> None:
    class Forbids(OracleModel):
        def forward(self, batch: Any, cache: Any) -> torch.Tensor:
            logits = super().forward(batch, cache)
            logits[:, 7] = -float("inf")
            return logits

    output = oracle_engine(Forbids()).generate(
        [1, 2], SamplingParams(temperature=5.0, max_tokens=90)
    )[0]
    assert output.finish_reason == "length"
    assert 7 not in output.token_ids


def test_samples_of_one_request_fail_alone() -> None:
    """The first sample's prompt is spoiled only where it alone computes."""
    engine = oracle_engine(Spoiled(float("nan")))
    bystanders = Bystanders(engine)
    engine.add_request([1, 2, 3, 4, 5, 13], greedy(4, n=3), request_id="bad")
    others = bystanders.finish()
    assert [o.request_id for o in others if o.finished] == ["bad"]
    assert {c.finish_reason for c in others[-1].completions} == {"error"}


@pytest.mark.parametrize("kind", ["chunk", "end"])
def test_blocks_of_a_spoiled_request_are_neither_shared_nor_left_as_they_were(kind: str) -> None:
    prompt = [1, 2, 3, 13, 5, 6, 7, 8, 9, 13]
    budget = 4 if kind == "chunk" else 64
    engine = oracle_engine(Spoiled(float("nan")), max_num_batched_tokens=budget)
    engine.add_request(prompt, greedy(4), request_id="bad")
    assert run(engine)["bad"].finish_reason == "error"
    assert_idle(engine)
    assert not engine.log.of_kind("cached")
    assert not engine.core.cache.k.any()
    assert not engine.core.cache.v.any()


def test_blocks_that_others_hold_survive_the_end_of_a_spoiled_request() -> None:
    prefix = list(range(20, 32))
    engine = oracle_engine(Spoiled(float("nan")))
    engine.add_request([*prefix, 1], greedy(8), request_id="good")
    engine.step()
    engine.add_request([*prefix, 13], greedy(8), request_id="bad")
    final = run(engine)
    assert final["bad"].num_cached_tokens == 12
    assert final["bad"].finish_reason == "error"
    assert final["good"].token_ids == expected([*prefix, 1], 8)
    output = engine.generate([*prefix, 2], greedy(4))[0]
    assert output.token_ids == expected([*prefix, 2], 4)
    assert output.num_cached_tokens == 12


def test_a_required_methods_only_scheduler_reports_the_error_and_wipes_the_blocks() -> None:
    engine = oracle_engine(
        Spoiled(float("nan")), scheduler=ToyScheduler, block_pool=ToyPool(32), num_blocks=None
    )
    engine.add_request([1, 2], greedy(6), request_id="good")
    engine.add_request([1, 2, 13], request_id="bad", params=greedy(6))
    final: dict[str, Any] = {}
    while engine.has_unfinished:
        final |= {o.request_id: o for o in engine.step() if o.finished}
    assert final["good"].token_ids == expected([1, 2], 6)
    assert final["bad"].finish_reason == "error"
    assert engine.pool.num_free == 32


# ---------------------------------------------------------------------- a real model

POISON = 200  # the token whose embedding is spoiled
PARAMS = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=3)


@contextmanager
def poisoned(model: Any, value: float = float("nan")) -> Iterator[None]:
    """Every occurrence of the token POISON becomes `value` right behind the embedding."""

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[args[0] == POISON] = value
        return output

    handle = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def tiny_engine(
    family: str, attention: str = "sdpa", **options: Any
) -> tuple[Any, ContinuousEngine]:
    model = tiny(family)
    options = {"block_size": 4, "num_blocks": 64, "max_num_batched_tokens": 32, **options}
    return model, ContinuousEngine(model, config=EngineConfig(**options), attention=attention)


PROMPT = [(7 * i) % 190 + 3 for i in range(40)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attention", ["cpu", "sdpa", "reference"])
def test_neighbours_of_a_spoiled_request_notice_nothing(
    family: str, value: float, attention: str
) -> None:
    """It gets block 0, with which a careless engine pads the tables of its shorter neighbours.

    Not to the last bit: it leaves the batch at once, and some processors multiply fewer rows in
    another order.
    """

    def serve(spoil: bool) -> dict[str, Any]:
        model, engine = tiny_engine(family, attention)
        engine.add_request([3], greedy(1, ignore_eos=True), request_id="first")
        engine.add_request(PROMPT[:3], PARAMS, request_id="short")
        engine.add_request(PROMPT[5:16], PARAMS, request_id="middle")
        engine.step()
        with poisoned(model, value):
            token_id = POISON if spoil else POISON + 1
            engine.add_request([token_id, *PROMPT[:6]], PARAMS, request_id="last")
            engine.step()
            assert (
                next(
                    e for e in engine.log.of_kind("allocated") if e.request_id == "last"
                ).block_ids[0]
                == 0
            )  # type: ignore[attr-defined]
            return run(engine)

    clean, spoiled = serve(False), serve(True)
    assert clean["last"].finish_reason == "length"
    assert "last" not in spoiled  # it ended at once
    for name in ("short", "middle"):
        assert spoiled[name].finish_reason == "length"
        assert spoiled[name].token_ids == clean[name].token_ids
        for got, wanted in zip(spoiled[name].logprobs, clean[name].logprobs, strict=True):
            assert dict(got.top) == pytest.approx(dict(wanted.top), abs=1e-5)


def _first_chunk(ids: list[int]) -> list[int]:
    return [*ids[:2], POISON, *ids[3:]]


def _last_chunk(ids: list[int]) -> list[int]:
    return [*ids[:-2], POISON, ids[-1]]


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("where", [_first_chunk, _last_chunk])
def test_a_prompt_spoiled_in_any_chunk_harms_no_neighbour_and_no_successor(
    family: str, where: Callable[[list[int]], list[int]]
) -> None:
    model, engine = tiny_engine(family, num_blocks=16, max_num_batched_tokens=8)
    alone = {n: engine.generate([PROMPT[:n]], PARAMS)[0].token_ids for n in (5, 9, 30)}
    model, engine = tiny_engine(family, num_blocks=16, max_num_batched_tokens=8)
    bad = where(PROMPT)
    with poisoned(model):
        engine.add_request(PROMPT[:5], PARAMS, request_id="5")
        engine.add_request(bad, PARAMS, request_id="bad")
        final = {o.request_id: o for o in engine.step()}
        engine.add_request(PROMPT[:9], PARAMS, request_id="9")
        final |= run(engine)
        assert final["bad"].finish_reason == "error"
        assert final["5"].token_ids == alone[5]
        assert final["9"].token_ids == alone[9]
        # It is spoiled again, not served from what it left behind; and its blocks are clean.
        assert engine.generate([bad], PARAMS)[0].finish_reason == "error"
        assert torch.isfinite(engine.core.cache.k).all()
        assert torch.isfinite(engine.core.cache.v).all()
        assert engine.generate([PROMPT[:30]], PARAMS)[0].token_ids == alone[30]
    assert_idle(engine)


def test_a_step_that_fails_after_writing_nan_leaves_none_in_recycled_blocks() -> None:
    """Somebody's hook raises when it sees NaN, which is in the cache by then."""
    model, engine = tiny_engine("llama", num_blocks=6, max_num_batched_tokens=64)
    alone = engine.generate([PROMPT[:5]], PARAMS)[0].token_ids
    model, engine = tiny_engine("llama", num_blocks=6, max_num_batched_tokens=64)

    def refuse(module: Any, args: Any, output: Any) -> None:
        if not torch.isfinite(output[0] if isinstance(output, tuple) else output).all():
            raise ArithmeticError("a NaN was seen")

    handle = model.get_output_embeddings().register_forward_hook(refuse)
    with poisoned(model):
        engine.add_request([5, POISON, *PROMPT[:14]], PARAMS, request_id="bad")
        with pytest.raises(ArithmeticError, match="a NaN was seen"):
            engine.step()
        engine.abort("bad")
        assert engine.generate([PROMPT[:5]], PARAMS)[0].token_ids == alone
    handle.remove()
