"""Defects that engines of this kind really had, each by its number in our list, and not here.

Most run on an oracle, a model whose cache slots remember which prefix produced them: whatever is
stale, lost, misplaced or foreign is seen at the step that reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from paged_engine import (
    BlockPool,
    ContinuousEngine,
    EngineConfig,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
)
from paged_engine.batch import Batch
from paged_engine.errors import BlockPoolError, InvalidRequestError, UnknownRequestError
from paged_engine.kv_cache import PagedKVCache
from paged_engine.sampler import sample
from tests.helpers.fakes import OracleModel
from tests.helpers.parity import generate, prompt_of, tiny_truth

BLOCK = 4


def oracle(model: OracleModel | None = None, **options: Any) -> ContinuousEngine:
    """An engine over the oracle, with blocks of four tokens."""
    pool = options.pop("block_pool", None)
    config = EngineConfig(**{"block_size": BLOCK, "num_blocks": 32, **options})
    return ContinuousEngine(model or OracleModel(), config=config, block_pool=pool)


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **options)


def right(prompt: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    return tuple(OracleModel().continuation(prompt, max_tokens))


def run(
    engine: ContinuousEngine, after_each: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """The final outputs, with everything checked after every step."""
    final: dict[str, Any] = {}
    for _ in range(2000):
        if not engine.has_unfinished:
            assert engine.pool.num_free == engine.config.num_blocks, "blocks were lost"
            return final
        final |= {o.request_id: o for o in engine.step() if o.finished}
        scheduler_of(engine).check_invariants()
        after_each()
    raise AssertionError("the engine does not come to an end")


def scheduler_of(engine: ContinuousEngine) -> Scheduler:
    assert isinstance(engine.scheduler, Scheduler)
    return engine.scheduler


def state_of(pool: BlockPool) -> Any:
    """Everything that a pool knows, in order."""
    return (
        list(pool._free),
        [(b.ref_cnt, b.prefix and (b.prefix.block_hash, b.prefix.block_id)) for b in pool.blocks],
        {key: (entry.tokens, entry.block_id) for key, entry in pool._index.items()},
    )


def prompt(length: int, first: int = 3) -> list[int]:
    return [(first + 7 * i) % 50 for i in range(length)]


# ------------------------------------------------------------------ of other engines


def test_defect_01_tokens_are_planned_after_the_prefix_hit() -> None:
    """nano-vllm pulls 211 and 233: the tokens to compute were counted before the prefix hit, so
    that a preempted request, which hits its own blocks, ran off the end of what it knew."""
    engine = oracle(num_blocks=8, max_num_batched_tokens=64)
    prompts = [prompt(9), prompt(10, first=20)]
    names = [engine.add_request(p, greedy(14)) for p in prompts]
    final = run(engine)
    preempted = engine.log.of_kind("preempted")
    assert preempted
    resumed: list[Any] = [e for e in engine.log.of_kind("admitted") if e.step > preempted[0].step]
    assert any(event.num_cached_tokens >= 2 * BLOCK for event in resumed)
    for admitted in resumed:
        scheduled: Any = next(
            e
            for e in engine.log.of_kind("scheduled")
            if (e.step, e.request_id) == (admitted.step, admitted.request_id)
        )
        assert scheduled.start == admitted.num_cached_tokens
    assert [final[n].token_ids for n in names] == [right(p, 14) for p in prompts]


@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK, 5 * BLOCK])
def test_defect_02_a_prompt_that_is_cached_whole_still_computes_a_token(length: int) -> None:
    """nano-vllm issue 144: a prompt of whole blocks, all cached, left a query of no tokens."""
    engine = oracle()
    for _ in range(3):
        output = engine.generate(prompt(length), greedy(3))[0]
        assert output.token_ids == right(prompt(length), 3)
    assert output.num_cached_tokens == length - BLOCK
    assert all(event.num_tokens >= 1 for event in engine.log.of_kind("scheduled"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("caching", [True, False])
def test_defect_03_a_preempted_request_computes_prompt_and_output_before_it_goes_on(
    caching: bool,
) -> None:
    """nano-vllm issue 144: "has it any output?" was asked to tell prefill from decode, which is
    wrong for a request that had output when it was preempted, in chunks above all."""
    engine = oracle(num_blocks=9, max_num_batched_tokens=5, enable_prefix_caching=caching)
    prompts = [prompt(6), prompt(7, first=20), prompt(5, first=33)]
    names = [engine.add_request(p, greedy(16)) for p in prompts]
    final = run(engine)
    assert [final[n].token_ids for n in names] == [right(p, 16) for p in prompts]
    outputs_at_preemption = []
    num_outputs = dict.fromkeys(names, 0)
    chunks_of_resumed = 0
    for event in engine.log:
        if event.kind == "token":
            num_outputs[event.request_id] += 1  # type: ignore[attr-defined]
        if event.kind == "preempted":
            outputs_at_preemption.append(num_outputs[event.request_id])  # type: ignore[attr-defined]
        if event.kind == "scheduled" and num_outputs[event.request_id]:  # type: ignore[attr-defined]
            chunks_of_resumed += event.num_tokens > 1  # type: ignore[attr-defined]
    assert any(outputs_at_preemption), "nobody was preempted who had output"
    assert chunks_of_resumed, "nobody computed its own output again"


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 16])
def test_defect_04_there_are_blocks_for_the_tokens_computed_and_not_one_more(
    block_size: int,
) -> None:
    """nano-vllm pulls 65 and 66: `len % block_size == 1` was "fixed" wrongly, twice."""
    for length in sorted({1, *(n * block_size + d for n in (1, 2) for d in (-1, 0, 1))} - {0}):
        engine = oracle(block_size=block_size)
        name = engine.add_request(prompt(length), greedy(2 * block_size + 1))

        def tight(name: str = name, engine: ContinuousEngine = engine) -> None:
            request = scheduler_of(engine).requests.get(name)
            if request is not None:
                computed = request.num_computed_tokens
                assert len(request.block_table) == -(-computed // block_size)

        final = run(engine, tight)
        assert final[name].token_ids == right(prompt(length), 2 * block_size + 1)


def test_defect_04_the_last_token_needs_no_slot() -> None:
    """The same off by one at the end: a pool of N slots serves N + 1 tokens."""
    engine = oracle(num_blocks=3)
    output = engine.generate(prompt(6), greedy(3 * BLOCK + 1 - 6))[0]
    assert output.token_ids == right(prompt(6), 7)


def test_defect_05_a_block_that_duplicates_a_cached_one_stays_its_holders() -> None:
    """mini-sglang pull 142: of two requests that computed the same prefix at once, the second's
    blocks were freed as duplicates while its table still pointed at them."""
    engine = oracle(num_blocks=16)
    same = prompt(2 * BLOCK + 1)
    first = engine.add_request(same, greedy(1))
    second = engine.add_request(same, greedy(20))
    final = {o.request_id: o for o in engine.step() if o.finished}
    assert first in final
    table = scheduler_of(engine).requests[second].block_table
    pool = engine.pool
    assert isinstance(pool, BlockPool)
    assert all(pool.blocks[i].ref_cnt == 1 for i in table)
    third = engine.add_request(prompt(30, first=11), greedy(4))
    final |= run(engine)
    assert final[second].token_ids == right(same, 20)
    assert final[third].token_ids == right(prompt(30, first=11), 4)


class Interrupted(OracleModel):
    """Something happens while its batch is in flight."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.happens: Callable[[], object] = lambda: None

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        logits = super().forward(batch, cache)
        if self.num_forwards == self.at:
            self.happens()
        return logits


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_defect_06_a_request_aborted_while_its_batch_is_in_flight_is_freed_once(at: int) -> None:
    """mini-sglang pull 111: aborted in flight, then finished by the batch: freed twice.  The
    fourth batch is the one that would have finished it."""
    model = Interrupted(at)
    engine = oracle(model, max_num_batched_tokens=64)
    name = engine.add_request(prompt(9), greedy(4))
    other = engine.add_request(prompt(5, first=30), greedy(8))
    model.happens = lambda: engine.abort(name)
    final = run(engine)
    assert final[name].finish_reason == "abort"
    assert final[name].token_ids == right(prompt(9), 4)[: at - 1]
    assert final[other].token_ids == right(prompt(5, first=30), 8)
    with pytest.raises(UnknownRequestError):
        engine.abort(name)


def test_defect_07_only_computed_blocks_are_published_though_the_owner_is_aborted() -> None:
    """sglang 38319: a prefix was published in the midst of its prefill and the owner aborted."""
    for budget in range(1, 13):
        engine = oracle(max_num_batched_tokens=budget)
        long = prompt(30)
        name = engine.add_request(long, greedy(4))
        engine.step()
        engine.step()
        computed = scheduler_of(engine).requests[name].num_computed_tokens
        assert computed == 2 * budget
        engine.abort(name)
        engine.step()
        twin = engine.add_request(long, greedy(4))
        assert run(engine)[twin].token_ids == right(long, 4)
        admitted: Any = engine.log.of_kind("admitted")[-1]
        assert admitted.num_cached_tokens == computed // BLOCK * BLOCK


def test_defect_07_nothing_is_hit_in_the_batch_that_computes_it() -> None:
    """nano-vllm issue 208: a block was found by content in the step that was to compute it."""
    engine = oracle(max_num_batched_tokens=64)
    same = prompt(13)
    names = [engine.add_request(same, greedy(4)) for _ in range(3)]
    engine.step()
    assert len(engine.log.of_kind("scheduled")) == 3
    assert not engine.log.of_kind("hit")
    late = engine.add_request(same, greedy(4))
    final = run(engine)
    assert len(engine.log.of_kind("hit")) == 1
    assert {final[n].token_ids for n in [*names, late]} == {right(same, 4)}


def test_defect_08_what_the_pool_can_never_hold_is_refused_at_once() -> None:
    """vLLM 39734 and 52520: a request within max_model_len but beyond the pool waited for ever."""
    engine = oracle(num_blocks=4, max_model_len=1000)
    with pytest.raises(InvalidRequestError, match=r"needs 18 tokens .* can serve \(17\)"):
        engine.add_request(prompt(10), greedy(8))
    assert not engine.has_unfinished
    name = engine.add_request(prompt(10), greedy(7))
    assert run(engine)[name].token_ids == right(prompt(10), 7)


def test_defect_09_everyone_preempted_nothing_freed() -> None:
    """vllm-ascend 16315: preempted requests kept their blocks parked, until all were preempted."""
    engine = oracle(num_blocks=10, max_num_seqs=8)
    prompts = [prompt(6, first=5 * i) for i in range(8)]
    names = [engine.add_request(p, greedy(18)) for p in prompts]

    def nothing_is_parked() -> None:
        scheduler = scheduler_of(engine)
        held = {i for r in scheduler.running for i in r.block_table}
        assert engine.pool.num_free == engine.config.num_blocks - len(held)  # type: ignore[operator]
        assert {e.step for e in engine.log.of_kind("scheduled")} == set(range(1, last_step() + 1))

    def last_step() -> int:
        return engine.log[-1].step

    final = run(engine, nothing_is_parked)
    assert len(engine.log.of_kind("preempted")) >= 3
    assert [final[n].token_ids for n in names] == [right(p, 18) for p in prompts]


def test_defect_10_a_request_that_waits_holds_nothing() -> None:
    """vLLM 45388: a waiting request held part of what it needed, and nobody made progress."""
    engine = oracle(num_blocks=8, max_num_seqs=4)
    prompts = [prompt(22, first=5 * i) for i in range(4)]
    names = [engine.add_request(p, greedy(6)) for p in prompts]
    waited = 0

    def waiting_hold_nothing() -> None:
        nonlocal waited
        scheduler = scheduler_of(engine)
        waited += len(scheduler.waiting)
        assert all(not request.block_table for request in scheduler.waiting)
        running = sum(len(request.block_table) for request in scheduler.running)
        assert engine.pool.num_free == 8 - running

    final = run(engine, waiting_hold_nothing)
    assert waited > 10
    assert [final[n].token_ids for n in names] == [right(p, 6) for p in prompts]


def test_defect_11_preempting_several_in_one_step_skips_and_repeats_nobody() -> None:
    """A list was changed while it was walked: of several victims of one step some were skipped,
    or still scheduled."""
    config = EngineConfig(block_size=2, num_blocks=12, max_num_seqs=6, max_num_batched_tokens=64)
    assert config.max_servable_tokens == 25
    pool = BlockPool(12, 2)
    scheduler = Scheduler(dataclasses.replace(config, max_model_len=25), pool)
    requests = [Request(f"r{i}", prompt(2, first=i), greedy(20), max_tokens=20) for i in range(6)]
    for request in requests:
        scheduler.add(request)
    most_victims = 0
    for step in range(400):
        if not scheduler.has_unfinished:
            break
        if step == 4:
            scheduler.resize(11)
        running_before = list(scheduler.running)
        output = scheduler.schedule()
        lost = output.preempted
        most_victims = max(most_victims, len(lost))
        assert len(set(lost)) == len(lost) and not set(lost) & output.scheduled.keys()
        assert set(running_before) == set(lost) | (set(scheduler.running) & set(running_before))
        assert set(output.scheduled) == set(scheduler.running)
        # the last in line go first
        stayed = [r for r in running_before if r not in lost]
        assert running_before == stayed + [r for r in running_before if r in lost]
        done = {
            r.request_id: 1
            for r, n in output.scheduled.items()
            if r.num_computed_tokens + n == r.num_tokens
        }
        scheduler.update(output, done)
        scheduler.check_invariants()
    assert all(request.status is RequestStatus.FINISHED_LENGTH for request in requests)
    assert most_victims >= 2


def constant(parent_hash: int, tokens: tuple[int, ...]) -> int:
    return 7


def without_the_parent(parent_hash: int, tokens: tuple[int, ...]) -> int:
    return hash(tokens)


def hash_of_none(parent_hash: int, tokens: tuple[int, ...]) -> int:
    return hash((None, tokens[0]))


@pytest.mark.parametrize("hash_function", [constant, without_the_parent, hash_of_none])
def test_defect_12_prefixes_with_the_same_hash_are_not_taken_for_each_other(
    hash_function: Callable[[int, tuple[int, ...]], int],
) -> None:
    """vLLM pulls 12621 and 15297: only hashes were compared, and from Python 3.12 `hash(None)`
    is the same in every process, so collisions can be made on purpose."""
    pool = BlockPool(32, BLOCK, hash_function=hash_function)
    engine = oracle(block_pool=pool)
    middle = [9, 9, 9, 9]
    prompts = [
        [1, 2, 3, 4, *middle, 5],
        [6, 7, 8, 9, *middle, 5],  # the same second block behind another first
        [1, 2, 3, 5, *middle, 5],
        [*middle, *middle, *middle, 5],  # the same block in three places
        [1, 9, 9, 9, *middle, 5],
    ]
    for _ in range(2):
        for tokens in prompts:
            assert engine.generate(tokens, greedy(5))[0].token_ids == right(tokens, 5)
            pool.check_invariants([])
    names = [engine.add_request(tokens, greedy(5)) for tokens in prompts]
    final = run(engine)
    assert [final[n].token_ids for n in names] == [right(tokens, 5) for tokens in prompts]


def test_defect_13_a_block_twice_in_one_call_is_a_double_free() -> None:
    """vLLM 42571: a table that named a block twice freed it twice in one call."""
    pool = BlockPool(4, BLOCK)
    taken = pool.allocate(2)
    assert taken is not None
    before = state_of(pool)
    with pytest.raises(BlockPoolError, match="double free"):
        pool.free([taken[0], taken[1], taken[0]])
    assert state_of(pool) == before
    pool.allocate(0, hits=[taken[0]])  # held twice: it may be given back twice
    pool.free([taken[0], taken[1], taken[0]])
    pool.check_invariants([])
    assert pool.num_free == 4


def test_defect_14_an_allocation_that_fails_changes_nothing() -> None:
    """State was changed first, and then there were too few blocks."""
    pool = BlockPool(6, BLOCK)
    table = pool.allocate(3)
    assert table is not None
    pool.publish(table, prompt(12), 12)
    pool.free(table)
    pool.take_changes()
    hits = pool.match_prefix(prompt(12))
    assert len(hits) == 2
    before = state_of(pool)
    assert pool.allocate(5, hits) is None
    assert pool.allocate(7) is None
    assert state_of(pool) == before and not pool.take_changes()
    assert pool.allocate(4, hits) is not None


def test_defect_14_a_request_that_is_not_admitted_is_as_before() -> None:
    config = EngineConfig(block_size=BLOCK, num_blocks=6, max_model_len=25)
    pool = BlockPool(6, BLOCK)
    scheduler = Scheduler(config, pool)
    first, second = (
        Request(name, prompt(13), greedy(8), max_tokens=8) for name in ("first", "second")
    )
    scheduler.add(first)
    scheduler.update(scheduler.schedule(), {"first": 1})
    scheduler.add(second)
    output = scheduler.schedule()
    if second in output.scheduled:  # it shares three blocks and takes one
        scheduler.update(output, {"first": 1, "second": 1})
    long = [*prompt(13), *prompt(7, first=30)]  # it would share three blocks, and need three
    third = Request("third", long, greedy(5), max_tokens=5)
    scheduler.add(third)
    output = scheduler.schedule()
    assert third not in output.scheduled
    assert third.status is RequestStatus.WAITING
    assert (third.block_table, third.num_computed_tokens, third.num_cached_tokens) == ([], 0, 0)
    scheduler.check_invariants()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_defect_15_a_prompt_as_long_as_the_budget_leaves_no_empty_rest(times: int) -> None:
    """The path for chunks was taken for a prompt that fits exactly, with nothing left over."""
    budget = 8
    engine = oracle(max_num_batched_tokens=budget)
    long = prompt(times * budget)
    name = engine.add_request(long, greedy(3))
    outputs = [engine.step() for _ in range(times)]
    assert [len(o) for o in outputs] == [0] * (times - 1) + [1], "the token comes with the last"
    assert outputs[-1][0].token_ids == right(long, 1)
    assert run(engine)[name].token_ids == right(long, 3)
    counts = [event.num_tokens for event in engine.log.of_kind("scheduled")]  # type: ignore[attr-defined]
    assert counts == [budget] * times + [1, 1]


def test_defect_16_asking_changes_nothing() -> None:
    """The question whether enough blocks are free evicted some as a side effect."""
    pool = BlockPool(4, BLOCK)
    table = pool.allocate(4)
    assert table is not None
    pool.publish(table, prompt(16), 16)
    pool.free(table)
    pool.take_changes()
    before = state_of(pool)
    for _ in range(3):
        hits = pool.match_prefix(prompt(16))
        assert len(hits) == 3
        assert pool.num_free_after(hits) == 1 and pool.num_free_after([]) == 4
        assert (pool.num_free, pool.num_used, pool.num_usable, pool.num_excess) == (4, 0, 4, 0)
        pool.match_prefix(prompt(16, first=30))
        pool.check_invariants([])
    assert state_of(pool) == before and not pool.take_changes()


def test_defect_17_outputs_of_a_second_call_are_not_lost() -> None:
    """Ids went on from one call to the next while outputs were looked up from nought."""
    engine = oracle()
    seen: set[str] = set()
    for first in (3, 11, 19):
        prompts = [prompt(5 + i, first=first + i) for i in range(4)]
        outputs = engine.generate(prompts, [greedy(4 - i) for i in range(4)])
        wanted = [right(p, 4 - i) for i, p in enumerate(prompts)]
        assert [o.token_ids for o in outputs] == wanted
        assert [list(o.prompt_token_ids) for o in outputs] == prompts
        assert not seen & {o.request_id for o in outputs}
        seen |= {o.request_id for o in outputs}


def test_defect_18_an_output_never_changes_once_handed_out() -> None:
    """An output held the engine's own list, which went on growing."""
    engine = oracle()
    handed_out = []
    for i in range(3):
        engine.add_request(prompt(6, first=9 * i), greedy(6, n=1 + i % 2))
    while engine.has_unfinished:
        handed_out += [(output, repr(output)) for output in engine.step()]
    assert len(handed_out) >= 18
    assert all(repr(output) == as_it_was for output, as_it_was in handed_out)
    output = handed_out[0][0]
    assert isinstance(output.token_ids, tuple) and isinstance(output.prompt_token_ids, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.request_id = "another"


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2})])
def test_defect_19_top_p_keeps_the_token_that_crosses_p(top_p: float, kept: set[int]) -> None:
    """nano-vllm pull 260: the token whose probability crosses p was dropped."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    requests = [
        Request(str(seed), [1], SamplingParams(temperature=1.0, top_p=top_p), seed=seed)
        for seed in range(300)
    ]
    drawn = {choice.token_id for choice in sample(logits.repeat(300, 1), requests)}
    assert drawn == kept


@pytest.mark.parametrize("budget", [3, 5, 64])
def test_defect_20_max_num_seqs_holds_while_prompts_are_chunked(budget: int) -> None:
    """Seen in nano-vllm: a prompt that was being chunked did not count as a seat."""
    engine = oracle(max_num_seqs=2, max_num_batched_tokens=budget)
    prompts = [prompt(11, first=5 * i) for i in range(5)]
    names = [engine.add_request(p, greedy(6)) for p in prompts]

    def two_seats() -> None:
        step = engine.log[-1].step
        assert len(scheduler_of(engine).running) <= 2
        now = [e.num_tokens for e in engine.log.of_kind("scheduled") if e.step == step]  # type: ignore[attr-defined]
        assert len(now) <= 2 and sum(now) <= budget

    final = run(engine, two_seats)
    assert [final[n].token_ids for n in names] == [right(p, 6) for p in prompts]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_defect_20_nobody_is_silent_while_a_long_prompt_is_chunked(policy: Any) -> None:
    """Seen in nano-vllm: a running request got nothing for 16 steps of another's prefill.  Under
    "priority" the long prompt stands before those that decode."""
    engine = oracle(num_blocks=64, max_num_batched_tokens=6, policy=policy)
    names = [engine.add_request(prompt(2, first=9 * i), greedy(40)) for i in range(3)]
    for _ in range(4):
        engine.step()
    engine.add_request(prompt(60, first=1), greedy(2), priority=-1)
    steps_of_the_long_one = 0
    for _ in range(15):
        outputs = {o.request_id: o for o in engine.step()}
        assert all(len(outputs[n].completions[0].new_token_ids) == 1 for n in names)
        step = engine.log[-1].step
        scheduled: list[Any] = [e for e in engine.log.of_kind("scheduled") if e.step == step]
        steps_of_the_long_one += len(scheduled) == 4
    assert steps_of_the_long_one >= 14


# ------------------------------------------------------------------ of the starting point


@pytest.mark.parametrize("attention", ["cpu", "sdpa", "reference"])
def test_defect_of_the_start_1_decoding_sees_the_keys_and_values_of_the_prompt(
    attention: str,
) -> None:
    """Decoding once ignored the prompt; the text looked fluent, at 450 tokens a second."""
    truth = tiny_truth("llama")
    prompts = [prompt_of(24, 1), [7, *prompt_of(24, 1)[1:]]]  # alike but for the first token
    engine = ContinuousEngine(
        truth.model, config=EngineConfig(num_blocks=20, probe=False), attention=attention
    )
    outputs = engine.generate(prompts, SamplingParams(max_tokens=12))
    wanted = [generate(truth.model, p, 12) for p in prompts]
    assert wanted[0] != wanted[1], "the test would not notice"
    assert [list(o.token_ids) for o in outputs] == wanted


@pytest.mark.parametrize("budget", [2, 64])
def test_defect_of_the_start_2_one_token_means_one_and_the_first_may_be_the_end(
    budget: int,
) -> None:
    """`max_new_tokens=1` gave two tokens, and the end was not looked for in the prefill's."""
    engine = oracle(max_num_batched_tokens=budget)
    output = engine.generate(prompt(7), greedy(1))[0]
    assert output.token_ids == right(prompt(7), 1) and output.finish_reason == "length"
    end = right(prompt(7), 1)[0]
    engine = oracle(OracleModel(eos=[end]), max_num_batched_tokens=budget)
    output = engine.generate(prompt(7), greedy(9))[0]
    assert output.token_ids == (end,) and output.finish_reason == "stop"
    assert engine.pool.num_free == 32


def test_defect_of_the_start_3_the_pool_never_runs_out_in_the_midst_of_decoding() -> None:
    """Admission did not look at free blocks, nobody could be preempted, and `free` took blocks
    that were free already."""
    engine = oracle(num_blocks=7, max_num_seqs=6)
    prompts = [prompt(3 + i, first=6 * i) for i in range(6)]
    names = [engine.add_request(p, greedy(17)) for p in prompts]
    final = run(engine)
    assert [final[n].token_ids for n in names] == [right(p, 17) for p in prompts]
    assert engine.log.of_kind("preempted")
    pool = BlockPool(2, BLOCK)
    table = pool.allocate(2)
    assert table is not None
    pool.free(table)
    with pytest.raises(BlockPoolError, match="double free"):
        pool.free(table)
    assert pool.num_free == 2


def test_defect_of_the_start_3_a_prompt_is_not_admitted_into_blocks_that_others_need() -> None:
    """What was admitted must not have to be preempted for the very next token."""
    engine = oracle(num_blocks=6, max_num_seqs=4)
    engine.add_request(prompt(BLOCK), greedy(9))
    engine.step()
    engine.add_request(prompt(4 * BLOCK, first=20), greedy(2))  # four blocks, and one more
    engine.step()
    assert len(scheduler_of(engine).running) == 1
    run(engine)
    assert not engine.log.of_kind("preempted")


def test_defect_of_the_start_4_nothing_asks_for_cuda_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls to CUDA without a guard, so that the way over the CPU died."""
    asked: list[str] = []

    def refuse(name: str) -> Callable[..., object]:
        def call(*_: object, **__: object) -> object:
            asked.append(name)
            raise AssertionError(f"torch.cuda.{name} was called")

        return call

    for name in (
        "synchronize",
        "mem_get_info",
        "empty_cache",
        "current_device",
        "current_stream",
        "set_device",
        "Event",
        "Stream",
        "memory_allocated",
        "max_memory_allocated",
        "reset_peak_memory_stats",
        "get_device_properties",
        "_lazy_init",
    ):
        monkeypatch.setattr(torch.cuda, name, refuse(name))
    truth = tiny_truth("llama")
    for attention in ("cpu", "sdpa", "reference"):
        engine = ContinuousEngine(
            truth.model, config=EngineConfig(max_model_len=64), attention=attention
        )
        output = engine.generate(prompt_of(9, 2), SamplingParams(max_tokens=4, temperature=1.0))
        assert len(output[0].token_ids) == 4
    assert not asked
