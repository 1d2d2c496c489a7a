"""Ten thousand requests through a small pool: nothing leaks, and a step costs what it always did.

Cost is counted, in calls, never timed.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from copy import deepcopy
from statistics import mean
from types import FrameType
from typing import Any

import pytest
import torch

from paged_engine.batch import Batch
from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.replay import forget_finished, replay
from paged_engine.request import RequestOutput, SamplingParams
from paged_engine.scheduler import Scheduler
from tests.helpers.fakes import OracleModel, VirtualClock
from tests.helpers.oracles import check_pool, check_requests, tables_of

VOCAB = 50


class LightModel:
    """A `ModelRunner` whose next token follows from the last one and its position alone."""

    kv_shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=1)
    dtype = torch.float32
    device = torch.device("cpu")
    vocab_size = VOCAB
    max_model_len = 10_000
    eos_token_ids: frozenset[int] = frozenset()
    rows = torch.randn(97, VOCAB, generator=torch.Generator().manual_seed(0))

    num_tokens = 0

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        self.num_tokens += batch.num_tokens
        last = batch.last_indices
        return self.rows[(batch.input_ids[last] * 31 + batch.positions[last]) % 97]

    def continuation(self, prompt: list[int], num_tokens: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(num_tokens):
            row = self.rows[(tokens[-1] * 31 + len(tokens) - 1) % 97]
            tokens.append(int(row.argmax()))
        return tokens[len(prompt) :]


class Soak:
    """A user who sends requests as fast as a line of limited length takes them."""

    def __init__(self, model: Any, number: int, *, record_events: bool = True) -> None:
        self.model = model
        self.number = number
        self.random = random.Random(0)
        self.engine = ContinuousEngine(
            model,
            config=EngineConfig(
                block_size=4,
                num_blocks=24,
                max_num_seqs=12,
                max_num_batched_tokens=32,
                max_events=2_000,
                record_events=record_events,
            ),
            clock=VirtualClock(),
        )
        self.asked: dict[str, tuple[list[int], int]] = {}
        self.num_sent = self.num_done = self.num_preempted = self.num_steps = 0

    @property
    def scheduler(self) -> Scheduler:
        assert isinstance(self.engine.scheduler, Scheduler)
        return self.engine.scheduler

    @property
    def pool(self) -> BlockPool:
        assert isinstance(self.engine.pool, BlockPool)
        return self.engine.pool

    def send(self) -> None:
        draw = self.random
        prompt = [draw.choice((1, 2))] * draw.randint(0, 12)  # often with a common beginning
        prompt += [draw.randrange(VOCAB) for _ in range(draw.randint(1, 6))]
        max_tokens = draw.randint(1, 14)
        name = f"r{self.num_sent}"
        self.asked[name] = prompt, max_tokens
        self.num_sent += 1
        self.engine.add_request(prompt, SamplingParams(max_tokens=max_tokens), request_id=name)

    def step(self) -> None:
        while self.num_sent < self.number and len(self.scheduler.requests) < 30:
            self.send()
        if self.random.random() < 0.05 and self.scheduler.requests:
            self.engine.abort(self.random.choice(sorted(self.scheduler.requests)))
        self.take(self.engine.step())
        self.num_steps += 1

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.finished:
                self.end(output)

    def end(self, output: RequestOutput) -> None:
        prompt, max_tokens = self.asked.pop(output.request_id)
        self.num_done += 1
        expected = self.model.continuation(prompt, max_tokens)
        if output.finish_reason == "length":
            assert list(output.token_ids) == expected
        else:
            assert output.finish_reason == "abort"
            assert list(output.token_ids) == expected[: len(output.token_ids)]

    def check_that_nothing_is_left(self) -> None:
        engine, scheduler, pool = self.engine, self.scheduler, self.pool
        assert self.num_done == self.num_sent == self.number and not self.asked
        assert pool.num_free == pool.num_blocks and pool.num_used == 0
        assert len(pool._index) <= pool.num_blocks and len(pool._changes) == 0
        assert not engine.core.samples and not engine.core.advanced
        assert not engine._users and not engine._undelivered
        assert not scheduler.requests and not scheduler.running and len(scheduler.waiting) == 0
        assert len(scheduler.waiting._heap) < 100
        assert sum(scheduler.num_finished.values()) == self.number
        if engine.core.recorder is not None:
            recorder = engine.core.recorder
            assert len(recorder.log) == 2_000 and recorder.log.num_dropped > 10_000
            assert not recorder._tables and not recorder._running
            assert len(recorder.base.requests) < 200
            whole = forget_finished(replay(recorder.log, deepcopy(recorder.base)))
            assert whole == engine.snapshot()
        check_pool(pool, [])


def calls_in(function: Callable[[], object]) -> int:
    """How many functions are called, those written in C included."""
    number = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # it calls back whoever asked to be told
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return number


@pytest.mark.slow
@pytest.mark.parametrize("record_events", [True, False])
def test_ten_thousand_requests_leave_nothing_behind(record_events: bool) -> None:
    soak = Soak(LightModel(), 10_000, record_events=record_events)
    costs: list[float] = []  # calls for each token, over a hundred steps now and then
    while soak.num_done < soak.number:
        if soak.num_steps % 1000 == 500 and soak.num_sent < soak.number:
            costs.append(cost_of_a_token(soak))
        soak.step()
        if soak.num_steps % 100 == 0:
            check_requests(soak.scheduler)
            check_pool(soak.pool, tables_of(soak.scheduler))
            soak.num_preempted += sum(r.num_preemptions for r in soak.scheduler.requests.values())
    soak.check_that_nothing_is_left()
    assert soak.num_preempted > 20, "the pool was never short"
    half = len(costs) // 2
    assert half >= 2
    assert mean(costs[-half:]) < 1.1 * mean(costs[:half]), f"a step grows dearer: {costs}"


def cost_of_a_token(soak: Soak) -> float:
    """Calls for each computed token, over a hundred steps."""
    num_calls = num_tokens = 0
    for _ in range(100):
        soak.step()
        soak.model.num_tokens = 0
        num_calls += calls_in(lambda: soak.take(soak.engine.step()))
        num_tokens += soak.model.num_tokens
    return num_calls / num_tokens


@pytest.mark.slow
def test_a_thousand_requests_read_only_what_is_theirs() -> None:
    soak = Soak(OracleModel(VOCAB), 1_000)
    while soak.num_done < soak.number:
        soak.step()
    soak.check_that_nothing_is_left()


@pytest.mark.parametrize("record_events", [True, False])
def test_a_long_line_makes_a_step_of_the_engine_no_dearer(record_events: bool) -> None:
    calls = []
    for number in (100, 10_000):
        config = EngineConfig(
            block_size=4, num_blocks=24, max_num_seqs=8, record_events=record_events
        )
        engine = ContinuousEngine(LightModel(), config=config, clock=VirtualClock())
        for i in range(number):
            engine.add_request([i % VOCAB, 3, 4], SamplingParams(max_tokens=1 + i % 3))
        engine.step()
        calls.append([calls_in(engine.step) for _ in range(10)])
    short, long = calls
    assert long == short
