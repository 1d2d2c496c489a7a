"""Random lives of the whole engine: whatever happens to it, the invariants hold after each step.

The model is `OracleModel`, which stores in the cache itself what produced each slot and checks
it at every read, so that a wrong block table, a stale prefix or a lost copy is seen at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from paged_engine.block_pool import BlockPool, chained_hash
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.errors import InvalidRequestError, InvariantError, UnknownRequestError
from paged_engine.events import Event
from paged_engine.replay import EngineState, forget_finished, replay
from paged_engine.request import RequestOutput, SamplingParams
from tests.helpers.fakes import OracleModel, VirtualClock
from tests.helpers.oracles import (
    Replayer,
    WatchedScheduler,
    check_content,
    check_pool,
    check_requests,
    constant_hash,
    modulo_three_hash,
    tables_of,
)

MODEL_LEN = 60
VOCAB = 50
HASHES = {"chained": chained_hash, "constant": constant_hash, "mod 3": modulo_three_hash}
# Long common beginnings, also with repeats inside, so that blocks of one prompt look alike.
BEGINNINGS = ([1] * 40, [1, 2] * 20, list(range(40)))
EVERY_STEP_MAY = ("stop", "length", "abort", "ignored", "error")

prompts = st.one_of(
    st.builds(
        lambda base, length, tail: base[:length] + tail,
        st.sampled_from(BEGINNINGS),
        st.integers(1, 30),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
)


def params_of(max_tokens: int, n: int, stop: bool, sampled: bool) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        n=n,
        stop_token_ids=range(0, VOCAB, 7) if stop else (),
        temperature=1.5 if sampled else 0.0,
        top_k=20 if sampled else 0,
        seed=max_tokens if sampled else None,
    )


@cache
def alone(prompt: tuple[int, ...], params: SamplingParams) -> tuple[tuple[int, ...], ...]:
    """What a request yields that nobody disturbs; greedy ones without any engine."""
    if params.is_greedy:
        output = OracleModel(VOCAB).continuation(prompt, params.max_tokens or 0)
        ends = [i + 1 for i, t in enumerate(output) if t in params.stop_token_ids]
        return (tuple(output[: min(ends, default=len(output))]),) * params.n
    config = EngineConfig(num_blocks=200, enable_prefix_caching=False, record_events=False)
    engine = ContinuousEngine(OracleModel(VOCAB, MODEL_LEN), config=config)
    return tuple(c.token_ids for c in engine.generate([list(prompt)], params)[0].completions)


class EngineLife(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 5),
        num_blocks=st.integers(1, 16),
        budget=st.one_of(st.integers(1, 4), st.integers(5, 40)),
        max_num_seqs=st.integers(1, 6),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.sampled_from([True, True, True, False]),
        hash_name=st.sampled_from(sorted(HASHES)),
        max_events=st.sampled_from([1_000_000, 1_000_000, 5, 40]),
    )
    def start(
        self,
        block_size: int,
        num_blocks: int,
        budget: int,
        max_num_seqs: int,
        policy: Any,
        caching: bool,
        hash_name: str,
        max_events: int,
    ) -> None:
        config = EngineConfig(
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            policy=policy,
            max_events=max_events,
            max_model_len=MODEL_LEN,
        )
        self.model = OracleModel(VOCAB, MODEL_LEN)
        self.pool = BlockPool(
            num_blocks,
            block_size,
            enable_prefix_caching=caching,
            hash_function=HASHES[hash_name],
        )
        self.engine = ContinuousEngine(
            self.model,
            config=config,
            scheduler=WatchedScheduler,
            block_pool=self.pool,
            clock=VirtualClock(),
        )
        self.replayer = Replayer(self.engine)
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.seen: dict[str, list[list[int]]] = {}  # by request, the new tokens of each sample
        self.final: dict[str, RequestOutput] = {}
        self.num_added = 0

    @property
    def scheduler(self) -> WatchedScheduler:
        scheduler = self.engine.scheduler
        assert isinstance(scheduler, WatchedScheduler)
        return scheduler

    @property
    def open(self) -> list[str]:
        """Requests without a final output that can still be aborted."""
        return [i for i, user in self.engine._users.items() if not user.is_finished]

    # ------------------------------------------------------------------ what users do

    @rule(
        prompt=prompts,
        max_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        stop=st.booleans(),
        sampled=st.sampled_from([False, False, True]),
        priority=st.integers(-1, 1),
    )
    def add(
        self, prompt: list[int], max_tokens: int, n: int, stop: bool, sampled: bool, priority: int
    ) -> None:
        params = params_of(max_tokens, n, stop, sampled)
        name = f"r{self.num_added}"
        self.num_added += 1
        slots = self.pool.num_usable * self.pool.block_size
        fits = len(prompt) + max_tokens <= min(MODEL_LEN, slots + 1)
        if not fits:
            before = self.engine.snapshot()
            with pytest.raises(InvalidRequestError, match="needs .* tokens"):
                self.engine.add_request(prompt, params, request_id=name, priority=priority)
            assert self.engine.snapshot() == before
            return
        self.engine.add_request(prompt, params, request_id=name, priority=priority)
        self.asked[name] = (prompt, params)
        self.seen[name] = [[] for _ in range(n)]
        self.check()

    @precondition(lambda self: self.final)
    @rule(data=st.data(), max_tokens=st.integers(1, 6))
    def go_on_from_an_answer(self, data: st.DataObject, max_tokens: int) -> None:
        output = self.final[data.draw(st.sampled_from(sorted(self.final)))]
        prompt = [*output.prompt_token_ids, *output.token_ids]
        if len(prompt) < 40:
            self.add(prompt, max_tokens, 1, False, False, 0)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.open))
        self.engine.abort(name)
        with pytest.raises(UnknownRequestError):
            self.engine.abort(name)
        self.check()

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        self.engine.resize_pool(data.draw(st.integers(1, self.pool.num_blocks)))
        self.scheduler.may_idle = True
        self.check()

    @rule(
        max_num_seqs=st.none() | st.integers(1, 6),
        budget=st.none() | st.integers(1, 40),
    )
    def set_limits(self, max_num_seqs: int | None, budget: int | None) -> None:
        self.engine.set_limits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
        self.scheduler.may_idle = True

    # ------------------------------------------------------------------ steps

    @rule(number=st.integers(1, 6))
    def step(self, number: int) -> None:
        for _ in range(number):
            self.take(self.engine.step())
            self.check()

    @rule(number=st.integers(1, 2))
    def failing_steps(self, number: int) -> None:
        """The forward pass raises; requests and pool are as before, and the engine goes on."""
        for _ in range(number):
            before = {
                i: (r.token_ids[:], r.num_computed_tokens, r.block_table[:], r.status)
                for i, r in self.scheduler.requests.items()
            }
            self.model.fail_at = {self.model.num_forwards + 1}
            num_forwards = self.model.num_forwards
            try:
                self.take(self.engine.step())
            except RuntimeError as error:
                assert "as planned" in str(error)
            else:
                assert self.model.num_forwards == num_forwards, "the failure was swallowed"
                continue
            finally:
                self.model.fail_at = set()
            for i, request in self.scheduler.requests.items():
                if request.num_preemptions and not request.block_table:
                    continue  # what was preempted stays preempted
                now = request.token_ids, request.num_computed_tokens, request.block_table
                assert (*now, request.status) == before[i]
            self.check()

    @rule(tokens=st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
    def step_with_bad_logits(self, tokens: set[int]) -> None:
        """Rows that are not numbers end their own request, and no other."""
        self.model.nan_after = tokens
        self.take(self.engine.step())
        self.model.nan_after = set()
        self.check()

    @rule(place=st.integers(0, 12))
    def step_with_a_listener_that_raises(self, place: int) -> None:
        def listener(event: Event) -> None:
            nonlocal place
            place -= 1
            if place < 0:
                raise ZeroDivisionError("a listener's own affair")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            end = self.engine.log.subscribe(listener)
            self.take(self.engine.step())
            end()
        assert len(caught) == (place < 0), "a listener that raised was told again, or silently"
        self.check()

    @rule(data=st.data(), place=st.integers(0, 25))
    def step_with_a_listener_that_aborts(self, data: st.DataObject, place: int) -> None:
        self._step_with_a_listener_that(lambda: self._abort_any(data), place)

    @rule(data=st.data(), place=st.integers(0, 25))
    def step_with_a_listener_that_tries_to_resize(self, data: st.DataObject, place: int) -> None:
        self._step_with_a_listener_that(lambda: self._resize_any(data), place)

    def _step_with_a_listener_that(self, acts: Callable[[], None], place: int) -> None:
        def listener(event: Event) -> None:
            nonlocal place
            place -= 1
            if place == -1:
                acts()

        end = self.engine.log.subscribe(listener)
        self.take(self.engine.step())
        end()
        self.check()

    def _abort_any(self, data: st.DataObject) -> None:
        if self.open:
            self.engine.abort(data.draw(st.sampled_from(self.open)))

    def _resize_any(self, data: st.DataObject) -> None:
        """Refused: the step that is under way was planned with the pool as it is."""
        with pytest.raises(InvariantError, match="inside a step"):
            self.engine.resize_pool(data.draw(st.integers(1, self.pool.num_blocks)))

    # ------------------------------------------------------------------ what must hold

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            name = output.request_id
            assert name not in self.final, "an output after the final one"
            prompt, params = self.asked[name]
            assert list(output.prompt_token_ids) == prompt
            expected = alone(tuple(prompt), params)
            for tokens, completion in zip(self.seen[name], output.completions, strict=True):
                tokens += completion.new_token_ids
                assert tuple(tokens) == completion.token_ids, "what was handed out adds up"
                whole = expected[completion.index]
                assert completion.token_ids == whole[: len(tokens)], "wrong tokens"
                reason = completion.finish_reason
                if reason in ("stop", "length"):
                    assert completion.token_ids == whole
                    stops = whole[-1] in params.stop_token_ids
                    assert reason == ("stop" if stops else "length")
                    assert completion.stop_reason == (whole[-1] if stops else None)
                else:
                    assert reason in (None, "abort", "ignored", "error")
            if output.finished:
                self.final[name] = output

    def check(self) -> None:
        check_pool(self.pool, tables_of(self.scheduler))
        check_requests(self.scheduler)
        check_content(self.pool, self.engine.core.cache)
        self.replayer.check()
        log = self.engine.log
        assert len(log) <= log.max_events

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(100 * (len(self.asked) + 1)):
            if not self.engine.has_unfinished:
                break
            self.take(self.engine.step())
            self.check()
        assert not self.engine.has_unfinished, "the engine does not come to an end"
        assert self.final.keys() == self.asked.keys(), "each request ends exactly once"
        assert self.pool.num_used == 0
        assert not self.scheduler.requests and not self.engine.core.samples
        self.scheduler.check_invariants()
        whole = replay(self.engine.log, self._base())
        assert forget_finished(whole) == self.engine.snapshot()

    def _base(self) -> EngineState:
        assert self.engine.core.recorder is not None
        return self.engine.core.recorder.base


TestEngineLife = EngineLife.TestCase
TestEngineLife.settings = settings(stateful_step_count=40)
