"""A reader's own scheduler or pool, with only what is required, runs in the real engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paged_engine import BlockPool, ContinuousEngine, EngineConfig, Scheduler, SchedulerOutput
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.replay import replay
from tests.engine.engine_helpers import (
    PROMPTS,
    ToyPool,
    ToyScheduler,
    expected,
    greedy,
    oracle_engine,
)
from tests.helpers.fakes import OracleModel

PARTS: dict[str, dict[str, Any]] = {
    "own scheduler": {"scheduler": ToyScheduler},
    "own pool": {"block_pool": lambda: ToyPool(32)},
    "both": {"scheduler": ToyScheduler, "block_pool": lambda: ToyPool(32)},
    "a function that makes one": {"scheduler": lambda config, pool: ToyScheduler(config, pool)},
}


def engine_with(name: str, **options: Any) -> ContinuousEngine:
    parts = dict(PARTS[name])
    if "block_pool" in parts:
        parts["block_pool"] = parts["block_pool"]()
        options["num_blocks"] = None
    return oracle_engine(**parts, **options)


@pytest.mark.parametrize("name", PARTS)
def test_tokens_are_the_same_and_the_log_is_full(name: str) -> None:
    engine = engine_with(name, max_num_seqs=2)
    outputs = engine.generate(PROMPTS, greedy(6))
    assert [o.token_ids for o in outputs] == [expected(p, 6) for p in PROMPTS]
    for kind in (
        "queued",
        "step_began",
        "admitted",
        "allocated",
        "scheduled",
        "token",
        "freed",
        "finished",
        "step_ended",
    ):
        assert engine.log.of_kind(kind), kind
    state = replay(engine.log)
    assert state.num_used == 0
    assert [r.status for r in state.requests.values()] == ["length"] * 3
    assert [tuple(r.output_token_ids) for r in state.requests.values()] == [
        o.token_ids for o in outputs
    ]
    assert engine.pool.num_free == 32


@pytest.mark.parametrize("name", PARTS)
def test_abort_streams_and_samples_work_with_own_parts(name: str) -> None:
    engine = engine_with(name)
    engine.add_request(PROMPTS[0], greedy(9), request_id="gone")
    stream = engine.stream(PROMPTS[1], greedy(4))
    next(stream)
    engine.abort("gone")
    assert list(stream)[-1].token_ids == expected(PROMPTS[1], 4)
    (output,) = engine.generate([PROMPTS[2]], greedy(3, n=2))
    assert [c.token_ids for c in output.completions] == [expected(PROMPTS[2], 3)] * 2
    gone = engine.step()[-1]
    assert (gone.request_id, gone.finish_reason) == ("gone", "abort")
    assert engine.pool.num_free == 32


def test_own_scheduler_computes_again_what_a_failed_step_left() -> None:
    model = OracleModel()
    model.fail_at = {1, 3}
    engine = oracle_engine(model, scheduler=ToyScheduler)
    engine.add_request(PROMPTS[0], greedy(5), request_id="a")
    tokens: tuple[int, ...] = ()
    failures = 0
    while engine.has_unfinished:
        try:
            for output in engine.step():
                tokens = output.token_ids
        except RuntimeError:
            failures += 1
    assert failures == 2
    assert tokens == expected(PROMPTS[0], 5)
    assert engine.pool.num_free == 32
    assert replay(engine.log).num_used == 0


class Picky(ToyScheduler):
    """Refuses every second request."""

    def add(self, request: Any) -> None:
        if request.sample_index == 1:
            raise ValueError("not this one")
        super().add(request)


def test_a_scheduler_that_refuses_a_sample_leaves_nothing_of_the_request() -> None:
    engine = oracle_engine(scheduler=Picky)
    engine.add_request(PROMPTS[0], greedy(4), request_id="other")
    for _ in range(2):  # the id is free again
        with pytest.raises(ValueError, match="not this one"):
            engine.add_request(PROMPTS[1], greedy(4, n=3), request_id="a")
    with pytest.raises(ValueError, match="not this one"):
        engine.generate([PROMPTS[1]], greedy(4, n=3))
    assert list(engine.core.samples) == list(engine._users) == ["other"]
    while engine.has_unfinished:
        (output,) = engine.step()
    assert output.token_ids == expected(PROMPTS[0], 4)


class Mendable(ToyScheduler):
    """Does wrong what `fault` says."""

    fault: Callable[[SchedulerOutput], Any] | None = None

    def schedule(self) -> SchedulerOutput:
        output = super().schedule()
        return output if self.fault is None else self.fault(output)


def _nothing(output: SchedulerOutput) -> SchedulerOutput:
    return SchedulerOutput()


def _too_many(output: SchedulerOutput) -> SchedulerOutput:
    output.scheduled = {r: n + 1 for r, n in output.scheduled.items()}
    return output


def _none_of_it(output: SchedulerOutput) -> SchedulerOutput:
    output.scheduled = dict.fromkeys(output.scheduled, 0)
    return output


def _without_blocks(output: SchedulerOutput) -> SchedulerOutput:
    for request in output.scheduled:
        request.block_table = request.block_table[:0]
    return output


FAULTS = {
    _nothing: "the scheduler scheduled nothing while 2 requests wait; every step must serve",
    _too_many: r"was scheduled for \d+ tokens; expected 1 to \d+",
    _none_of_it: r"was scheduled for 0 tokens; expected 1 to \d+",
    lambda output: None: "schedule returned None; expected a SchedulerOutput",
    lambda output: [1]: r"schedule returned \[1\]; expected a SchedulerOutput",
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.items())
def test_a_scheduler_that_breaks_its_word_is_told_so_and_can_be_mended(
    fault: Any, message: str
) -> None:
    engine = oracle_engine(scheduler=Mendable)
    scheduler: Any = engine.scheduler
    for name, prompt in (("a", PROMPTS[0]), ("b", PROMPTS[1])):
        engine.add_request(prompt, greedy(5), request_id=name)
    final: dict[str, Any] = {}
    for k in range(4):
        scheduler.fault = fault if k % 2 else None
        if k % 2:
            with pytest.raises(InvariantError, match=message):
                engine.step()
        else:
            engine.step()
    scheduler.fault = None
    while engine.has_unfinished:
        final |= {o.request_id: o for o in engine.step()}
    assert final["a"].token_ids == expected(PROMPTS[0], 5)
    assert final["b"].token_ids == expected(PROMPTS[1], 5)
    assert engine.pool.num_free == 32
    assert replay(engine.log).num_used == 0


def test_a_scheduler_that_gives_no_blocks_is_told_so() -> None:
    engine = oracle_engine(scheduler=Mendable)
    scheduler: Any = engine.scheduler
    scheduler.fault = _without_blocks
    engine.add_request(PROMPTS[0], greedy(5))
    with pytest.raises(InvariantError, match=r"0 blocks hold 0; allocate before scheduling"):
        engine.step()


class Swaps(ToyScheduler):
    """Preempts everybody in every third step, and admits them again in the same one."""

    def __init__(self, config: EngineConfig, pool: Any) -> None:
        super().__init__(config, pool)
        self.num_steps = 0

    def schedule(self) -> SchedulerOutput:
        from paged_engine.request import RequestStatus

        self.num_steps += 1
        preempted = []
        if self.num_steps % 3 == 0:
            preempted = list(self.running)
            for request in preempted:
                self.pool.free(request.block_table)
                request.block_table = []
                request.num_computed_tokens = 0
                request.set_status(RequestStatus.PREEMPTED)
            self.running = []
            self.waiting = preempted + self.waiting
        output = super().schedule()
        output.preempted = preempted
        return output


@pytest.mark.parametrize("own_pool", [False, True])
def test_a_request_may_be_preempted_and_admitted_again_in_one_step(own_pool: bool) -> None:
    parts: dict[str, Any] = {"block_pool": ToyPool(32), "num_blocks": None} if own_pool else {}
    engine = oracle_engine(scheduler=Swaps, **parts)
    for prompt in PROMPTS:
        engine.add_request(prompt, greedy(7))
    final: dict[str, Any] = {}
    while engine.has_unfinished:
        final |= {o.request_id: o for o in engine.step()}
        state = replay(engine.log)
        for sample in engine.core.samples.values():
            told = state.requests[sample.request.request_id]
            assert told.block_table == sample.request.block_table
            assert told.status == sample.request.status.value
    assert [o.token_ids for o in final.values()] == [expected(p, 7) for p in PROMPTS]


def test_parts_that_do_not_fit_together_are_refused() -> None:
    config = EngineConfig(block_size=4, num_blocks=8)
    scheduler = Scheduler(config, BlockPool(8, 4))
    with pytest.raises(InvalidConfigError, match="another pool than block_pool; give the same"):
        ContinuousEngine(
            OracleModel(), None, config, scheduler=scheduler, block_pool=BlockPool(8, 4)
        )
    with pytest.raises(InvalidConfigError, match=r"num_blocks is 8 but the block pool has 9"):
        ContinuousEngine(OracleModel(), None, config, block_pool=BlockPool(9, 4))
    with pytest.raises(InvalidConfigError, match=r"block_size is 4 but the block pool's is 8"):
        ContinuousEngine(OracleModel(), None, config, block_pool=BlockPool(8, 8))
    engine = ContinuousEngine(
        OracleModel(), None, config, scheduler=scheduler, block_pool=scheduler.pool
    )
    assert engine.pool is scheduler.pool
    assert engine.generate([1, 2], greedy(3))[0].token_ids == expected([1, 2], 3)


def test_a_pool_that_counts_as_false_is_still_the_pool() -> None:
    class Sized(ToyPool):
        def __len__(self) -> int:
            return 0

    pool = Sized(16)
    engine = oracle_engine(block_pool=pool, num_blocks=None)
    assert engine.pool is pool
    assert engine.config.num_blocks == 16


def test_a_scheduler_without_limits_or_resizing_says_so() -> None:
    engine = oracle_engine(scheduler=ToyScheduler)
    with pytest.raises(InvalidConfigError, match="limits cannot be changed; expected it to have"):
        engine.set_limits(max_num_seqs=2)
    with pytest.raises(InvalidConfigError, match="cannot be resized; expected it to have"):
        engine.resize_pool(4)


def test_an_attention_that_is_none_is_refused() -> None:
    from paged_engine.models import tiny

    for attention in ("flash", 5):
        with pytest.raises(InvalidConfigError, match="expected 'reference', 'sdpa', 'cpu' or a"):
            ContinuousEngine(tiny(), attention=attention)  # type: ignore[arg-type]
