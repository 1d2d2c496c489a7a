"""Limits: those of the configuration, and those that change while requests are served."""

from __future__ import annotations

from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig
from paged_engine.errors import InvalidConfigError, InvalidRequestError, UnsupportedModelError
from tests.engine.engine_helpers import (
    Collected,
    assert_idle,
    check,
    expected,
    greedy,
    oracle_engine,
    run,
)
from tests.helpers.fakes import OracleModel

LONG = {"a": list(range(1, 12)), "b": list(range(20, 32)), "c": [40, 41]}


def add_long(engine: ContinuousEngine, num_tokens: int = 10) -> None:
    for name, prompt in LONG.items():
        engine.add_request(prompt, greedy(num_tokens), request_id=name)


def test_a_smaller_pool_preempts_and_changes_no_token() -> None:
    engine = oracle_engine(num_blocks=16)
    add_long(engine)
    collected = Collected()
    for size in (16, 6, 6, 9, 6, 16):
        engine.resize_pool(size)
        check(engine)
        collected.take(engine.step())
        check(engine)
        state = engine.snapshot()
        assert state.num_used <= size == state.num_usable
    while engine.has_unfinished:
        collected.take(engine.step())
        check(engine)
    assert engine.log.of_kind("preempted")
    for name, prompt in LONG.items():
        assert collected.final[name].token_ids == expected(prompt, 10)
    assert_idle(engine)


def test_what_a_smaller_pool_can_never_serve_ends_as_ignored_and_the_log_says_so_at_once() -> None:
    engine = oracle_engine(num_blocks=16)
    add_long(engine)
    collected = Collected()
    collected.take(engine.step())
    engine.resize_pool(3)
    check(engine)
    collected.take(engine.step())
    assert {n: o.finish_reason for n, o in collected.final.items()} == {
        "a": "ignored",
        "b": "ignored",
    }
    assert collected.final["a"].token_ids == expected(LONG["a"], 1)
    while engine.has_unfinished:
        collected.take(engine.step())
        check(engine)
    assert collected.final["c"].token_ids == expected(LONG["c"], 10)
    with pytest.raises(InvalidRequestError, match=r"can serve \(13\)"):
        engine.add_request(LONG["a"], greedy(10))
    engine.resize_pool(16)
    assert engine.generate(LONG["a"], greedy(10))[0].token_ids == expected(LONG["a"], 10)
    assert_idle(engine)


def test_ids_of_ignored_requests_can_be_used_again_once_delivered() -> None:
    engine = oracle_engine(num_blocks=16)
    engine.add_request(LONG["a"], greedy(10), request_id="a")
    engine.step()
    engine.resize_pool(2)
    (output,) = engine.step()
    assert output.finish_reason == "ignored"
    engine.add_request([1], greedy(2), request_id="a")
    assert run(engine)["a"].token_ids == expected([1], 2)


def test_generate_and_stream_end_when_their_requests_are_ignored() -> None:
    engine = oracle_engine(num_blocks=16)
    stream = engine.stream(LONG["a"], greedy(10))
    next(stream)
    engine.resize_pool(2)
    assert [o.finish_reason for o in stream] == ["ignored"]
    engine.resize_pool(16)

    engine.add_request(LONG["b"], greedy(10), request_id="b")
    engine.step()
    engine.resize_pool(2)
    (output,) = engine.generate([1], greedy(3))
    assert output.token_ids == expected([1], 3)
    assert [o.finish_reason for o in engine.step()] == ["ignored"]


@pytest.mark.parametrize("size", [0, 17, -1])
def test_a_pool_cannot_be_made_of_no_blocks_or_more_than_there_are(size: int) -> None:
    engine = oracle_engine(num_blocks=16)
    add_long(engine)
    engine.step()
    with pytest.raises(InvalidConfigError, match="expected 1 to 16"):
        engine.resize_pool(size)
    check(engine)
    assert engine.snapshot().num_usable == 16


def test_fewer_seats_take_effect_with_the_next_step() -> None:
    engine = oracle_engine()
    add_long(engine)
    collected = Collected()
    collected.take(engine.step())
    engine.set_limits(max_num_seqs=1, max_num_batched_tokens=5)
    check(engine)
    while engine.has_unfinished:
        collected.take(engine.step())
        check(engine)
        running = [s for s in engine.core.samples.values() if s.request.status.value == "running"]
        assert len(running) <= 1
    last = engine.log.of_kind("step_ended")
    assert all(e.num_tokens <= 5 for e in last[1:])  # type: ignore[attr-defined]
    for name, prompt in LONG.items():
        assert collected.final[name].token_ids == expected(prompt, 10)


@pytest.mark.parametrize(
    "limits", [{"max_num_seqs": 0}, {"max_num_batched_tokens": 0}, {"max_num_seqs": 1.5}]
)
def test_bad_limits_change_nothing(limits: dict[str, Any]) -> None:
    engine = oracle_engine()
    before = engine.snapshot()
    with pytest.raises(InvalidConfigError, match="expected a whole number of at least 1"):
        engine.set_limits(max_num_batched_tokens=7, **limits) if (
            "max_num_batched_tokens" not in limits
        ) else engine.set_limits(max_num_seqs=7, **limits)
    assert engine.snapshot() == before


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(InvalidConfigError, match=r"unknown option blocks, seats; .*block_size, "):
        ContinuousEngine.from_pretrained(seats=3, blocks=1)


def test_two_sizes_for_the_pool_are_one_too_many() -> None:
    with pytest.raises(InvalidConfigError, match="both fix the size of the pool; give one"):
        EngineConfig(num_blocks=4, kv_cache_memory=1 << 20)


def test_a_model_cannot_be_made_longer_than_it_is() -> None:
    with pytest.raises(InvalidConfigError, match="max_model_len is 11 .*made for 10.*at most that"):
        oracle_engine(OracleModel(max_model_len=10), max_model_len=11)
    assert oracle_engine(OracleModel(max_model_len=10), max_model_len=9).config.max_model_len == 9


def test_memory_that_pays_for_no_block_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="takes 192 bytes, more than kv_cache_memory=191"):
        oracle_engine(num_blocks=None, kv_cache_memory=191)
    assert oracle_engine(num_blocks=None, kv_cache_memory=192 * 3).config.num_blocks == 3


@pytest.mark.parametrize("device", ["cuda", "cuda:9", "tpu", "", "5"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidConfigError, match=r"device is .*(expected|use)"):
        ContinuousEngine.from_pretrained("/nowhere", device=device)


def test_a_number_format_that_does_not_exist_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidConfigError, match="dtype is 'bf16x'; expected 'auto', 'float32'"):
        ContinuousEngine.from_pretrained("/nowhere", dtype="bf16x")


@pytest.mark.parametrize("model", [None, "a name", 5, object()])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="expected a causal language model"):
        ContinuousEngine(model)


def test_without_events_there_is_no_log_and_the_same_tokens() -> None:
    engine = oracle_engine(record_events=False)
    add_long(engine)
    final = run(engine)
    assert {n: o.token_ids for n, o in final.items()} == {
        n: expected(p, 10) for n, p in LONG.items()
    }
    assert final["a"].timing.ttft is not None
    with pytest.raises(InvalidConfigError, match="records no events; set record_events=True"):
        _ = engine.log
    engine.resize_pool(3)
    engine.set_limits(max_num_seqs=1)
