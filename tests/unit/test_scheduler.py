"""The scheduler's decisions, one rule at a time; no model, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidRequestError, InvariantError, UnknownRequestError
from paged_engine.request import Request, RequestStatus, SamplingParams
from paged_engine.scheduler import Scheduler, SchedulerOutput, WaitingQueue
from tests.helpers.oracles import check_pool, check_requests, tables_of

S = RequestStatus
TOKEN = 9  # what every request is given


def scheduler_of(num_blocks: int = 16, block_size: int = 2, **options: Any) -> Scheduler:
    caching = options.pop("enable_prefix_caching", True)
    config = EngineConfig(num_blocks=num_blocks, block_size=block_size, **options)
    return Scheduler(config, BlockPool(num_blocks, block_size, enable_prefix_caching=caching))


def request_of(name: str, prompt: int | Sequence[int], max_tokens: int = 4, **o: Any) -> Request:
    """With `prompt` tokens of its own, or these."""
    if isinstance(prompt, int):
        prompt = [100 * ord(name[0]) + i for i in range(prompt)]
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens), max_tokens=max_tokens, **o)


def pool_of(scheduler: Scheduler) -> BlockPool:
    assert isinstance(scheduler.pool, BlockPool)
    return scheduler.pool


def check(scheduler: Scheduler) -> None:
    scheduler.check_invariants()
    check_requests(scheduler)
    check_pool(pool_of(scheduler), tables_of(scheduler))


def complete(scheduler: Scheduler, output: SchedulerOutput) -> list[Request]:
    """As if the model had run."""
    sampled = {
        r.request_id: TOKEN
        for r, n in output.scheduled.items()
        if r.num_computed_tokens + n == r.num_tokens
    }
    finished = scheduler.update(output, sampled)
    check(scheduler)
    return finished


def step(scheduler: Scheduler) -> dict[str, int]:
    """One whole step; who computed how many tokens."""
    output = scheduler.schedule()
    decided = {r.request_id: n for r, n in output.scheduled.items()}
    complete(scheduler, output)
    return decided


def run(scheduler: Scheduler, most: int = 500) -> int:
    for number in range(most):
        if not scheduler.has_unfinished:
            return number
        assert step(scheduler)
    raise AssertionError("no end")


# Budget and chunks -----------------------------------------------------------------------------


def test_prefill_decode_and_chunks_are_one_rule() -> None:
    scheduler = scheduler_of(max_num_batched_tokens=5)
    scheduler.add(request_of("a", 3))
    scheduler.add(request_of("b", 8))
    assert step(scheduler) == {"a": 3, "b": 2}
    assert step(scheduler) == {"a": 1, "b": 4}
    assert step(scheduler) == {"a": 1, "b": 2}
    assert step(scheduler) == {"a": 1, "b": 1}


def test_a_prompt_as_long_as_the_budget_is_not_split() -> None:
    scheduler = scheduler_of(max_num_batched_tokens=6)
    scheduler.add(request_of("a", 6))
    assert step(scheduler) == {"a": 6}
    assert step(scheduler) == {"a": 1}


def test_a_budget_of_one_serves_everybody_in_turn() -> None:
    scheduler = scheduler_of(max_num_batched_tokens=1)
    requests = [request_of(name, 3, max_tokens=2) for name in "ab"]
    for request in requests:
        scheduler.add(request)
    for _ in range(3):
        assert step(scheduler) == {"a": 1}
    run(scheduler)
    assert [r.status for r in requests] == [S.FINISHED_LENGTH] * 2


def test_a_long_prompt_does_not_silence_those_that_decode_behind_it() -> None:
    scheduler = scheduler_of(num_blocks=64, max_num_batched_tokens=4, policy="priority")
    for name in "ab":
        scheduler.add(request_of(name, 1, max_tokens=30, priority=1))
    step(scheduler)
    scheduler.add(request_of("x", 20, priority=0))  # first in line from now on
    assert step(scheduler) == {"a": 1, "b": 1, "x": 2}
    assert step(scheduler) == {"x": 2, "a": 1, "b": 1}


def test_every_running_request_gets_a_token_and_no_more_than_it_knows() -> None:
    scheduler = scheduler_of(num_blocks=64, max_num_batched_tokens=100)
    for name in "abc":
        scheduler.add(request_of(name, 5))
    assert step(scheduler) == {"a": 5, "b": 5, "c": 5}
    assert step(scheduler) == {"a": 1, "b": 1, "c": 1}


# Admission -------------------------------------------------------------------------------------


def test_max_num_seqs_holds_also_while_prompts_are_chunked() -> None:
    scheduler = scheduler_of(num_blocks=64, max_num_seqs=2, max_num_batched_tokens=3)
    for name in "abc":
        scheduler.add(request_of(name, 4))
    while scheduler.has_unfinished:
        assert len(step(scheduler)) <= 2
        assert len(scheduler.running) <= 2


def test_a_lower_max_num_seqs_holds_from_the_next_step_on() -> None:
    scheduler = scheduler_of(num_blocks=64, max_num_seqs=3)
    for name in "abc":
        scheduler.add(request_of(name, 2))
    step(scheduler)
    scheduler.max_num_seqs = 1
    assert step(scheduler) == {"a": 1}
    assert [r.status for r in scheduler.waiting] == [S.PREEMPTED] * 2
    run(scheduler)


def test_first_come_first_served() -> None:
    scheduler = scheduler_of(max_num_seqs=1)
    for name in "bac":
        scheduler.add(request_of(name, 1, max_tokens=1, priority=-ord(name)))
    assert [step(scheduler) for _ in range(3)] == [{"b": 1}, {"a": 1}, {"c": 1}]


def test_by_priority_the_lowest_goes_first_and_equals_by_arrival() -> None:
    scheduler = scheduler_of(max_num_seqs=1, policy="priority")
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        scheduler.add(request_of(name, 1, max_tokens=1, priority=priority))
    assert [[*step(scheduler)] for _ in range(4)] == [["d"], ["b"], ["a"], ["c"]]


def test_a_request_waits_until_all_it_knows_fits_beside_what_others_will_need() -> None:
    scheduler = scheduler_of(num_blocks=4, block_size=2)
    scheduler.add(request_of("a", 4, max_tokens=2))  # holds 2 blocks, and will need a third
    scheduler.add(request_of("b", 3, max_tokens=2))  # needs 2
    assert step(scheduler) == {"a": 4}
    assert step(scheduler) == {"a": 1}
    assert step(scheduler) == {"b": 3}


def test_who_waits_holds_nothing() -> None:
    scheduler = scheduler_of(num_blocks=3)
    scheduler.add(request_of("a", 4, max_tokens=2))
    scheduler.add(request_of("b", 4, max_tokens=2))
    step(scheduler)
    assert pool_of(scheduler).num_used == 2
    assert not scheduler.requests["b"].block_table


@pytest.mark.parametrize(("prompt", "max_tokens"), [(4, 5), (8, 1)])
def test_a_request_that_fills_the_whole_pool_is_served(prompt: int, max_tokens: int) -> None:
    scheduler = scheduler_of(num_blocks=4, block_size=2)
    scheduler.add(request_of("x", 2, max_tokens=2))
    request = request_of("a", prompt, max_tokens=max_tokens)
    scheduler.add(request)
    run(scheduler)
    assert request.status is S.FINISHED_LENGTH and request.num_output_tokens == max_tokens


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = scheduler_of(num_blocks=4, block_size=2)
    with pytest.raises(InvalidRequestError, match="needs 10 tokens"):
        scheduler.add(request_of("a", 4, max_tokens=6))
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        scheduler.add(request_of("a", []))
    assert not scheduler.has_unfinished and len(scheduler.waiting) == 0


def test_an_id_can_be_used_again_only_when_its_owner_has_ended() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", 1))
    with pytest.raises(InvalidRequestError, match="already here"):
        scheduler.add(request_of("a", 1))
    scheduler.abort("a")
    scheduler.add(request_of("a", 1))


def test_a_scheduler_without_limits_is_refused() -> None:
    with pytest.raises(InvariantError, match="num_blocks or max_model_len"):
        Scheduler(EngineConfig(), BlockPool(4, 2))


# Preemption ------------------------------------------------------------------------------------


def crowded() -> tuple[Scheduler, list[Request]]:
    """Three that fit now, and outgrow the pool when they decode."""
    scheduler = scheduler_of(num_blocks=6, block_size=2, enable_prefix_caching=False)
    requests = [request_of(name, 2, max_tokens=8) for name in "abc"]
    for request in requests:
        scheduler.add(request)
    return scheduler, requests


def test_the_last_in_line_is_preempted_and_loses_everything_but_its_tokens() -> None:
    scheduler, (a, b, c) = crowded()
    while not c.num_preemptions:
        output = scheduler.schedule()
        if output.preempted:
            assert output.preempted == [c]
            assert c.status is S.PREEMPTED and not c.block_table
            assert (c.num_computed_tokens, c.num_cached_tokens) == (0, 0)
            assert c.num_output_tokens > 0
            assert set(output.scheduled) == {a, b}
        complete(scheduler, output)
    run(scheduler)
    assert [r.num_output_tokens for r in (a, b, c)] == [8, 8, 8]
    assert a.num_preemptions == 0


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    """Also if blocks and a seat are free now, and somebody more urgent waits."""
    scheduler = scheduler_of(num_blocks=8, block_size=1, max_num_seqs=2, policy="priority")
    scheduler.add(request_of("a", 1, max_tokens=7))
    scheduler.add(request_of("b", 5, max_tokens=3, priority=1))
    step(scheduler)
    step(scheduler)
    scheduler.add(request_of("w", 1, max_tokens=1))
    output = scheduler.schedule()
    assert [r.request_id for r in output.preempted] == ["b"]
    assert [r.request_id for r in output.scheduled] == ["a"]
    assert pool_of(scheduler).num_free == 5 and len(scheduler.running) == 1
    complete(scheduler, output)
    assert step(scheduler) == {"a": 1, "w": 1}


def test_one_that_is_preempted_stands_before_those_that_came_later() -> None:
    scheduler, (_, _, c) = crowded()
    while not c.num_preemptions:
        step(scheduler)
    scheduler.add(request_of("d", 1))
    assert scheduler.waiting.peek() is c


def test_everybody_outgrows_the_pool_and_everybody_is_served() -> None:
    scheduler = scheduler_of(num_blocks=7, block_size=1, enable_prefix_caching=False)
    requests = [request_of(name, 1, max_tokens=7) for name in "abcdefg"]
    for request in requests:
        scheduler.add(request)
    run(scheduler)
    assert all(r.status is S.FINISHED_LENGTH and r.num_output_tokens == 7 for r in requests)


def test_after_preemption_known_tokens_catch_up_in_chunks() -> None:
    scheduler = scheduler_of(max_num_batched_tokens=4, enable_prefix_caching=False)
    request = request_of("a", 3, max_tokens=8)
    scheduler.add(request)
    for _ in range(4):
        step(scheduler)
    assert request.num_tokens == 7
    scheduler._preempt(request, SchedulerOutput())
    assert [step(scheduler) for _ in range(3)] == [{"a": 4}, {"a": 3}, {"a": 1}]


# Sharing ---------------------------------------------------------------------------------------


def test_a_cached_beginning_is_not_computed_again() -> None:
    scheduler = scheduler_of(block_size=2)
    scheduler.add(request_of("a", [1, 2, 3, 4, 5], max_tokens=1))
    assert step(scheduler) == {"a": 5}
    second = request_of("b", [1, 2, 3, 4, 6], max_tokens=1)
    scheduler.add(second)
    assert step(scheduler) == {"b": 1}
    assert second.num_cached_tokens == 4


def test_a_full_hit_still_computes_the_last_token() -> None:
    scheduler = scheduler_of(block_size=2)
    for name in "ab":
        scheduler.add(request_of(name, [1, 2, 3, 4], max_tokens=1))
        decided = step(scheduler)
    assert decided == {"b": 2}  # the whole last block, as blocks are shared whole


def test_tokens_are_counted_after_the_hit() -> None:
    scheduler = scheduler_of(block_size=2, max_num_batched_tokens=3)
    scheduler.add(request_of("a", [1, 2, 3, 4, 5, 6, 7], max_tokens=1))
    for _ in range(3):
        step(scheduler)
    scheduler.add(request_of("b", [1, 2, 3, 4, 5, 6, 8], max_tokens=1))
    assert step(scheduler) == {"b": 1}


def test_nobody_shares_what_is_computed_in_this_very_step() -> None:
    scheduler = scheduler_of(block_size=2)
    for name in "ab":
        scheduler.add(request_of(name, [1, 2, 3, 4, 5], max_tokens=3))
    assert step(scheduler) == {"a": 5, "b": 5}
    a, b = scheduler.running
    assert not set(a.block_table) & set(b.block_table)


def test_half_a_prompt_is_published_as_far_as_it_is_computed() -> None:
    scheduler = scheduler_of(block_size=2, max_num_batched_tokens=3)
    scheduler.add(request_of("a", [1, 2, 3, 4, 5, 6, 7], max_tokens=1))
    assert step(scheduler) == {"a": 3}
    scheduler.abort("a")
    second = request_of("b", [1, 2, 3, 4, 5, 6, 7], max_tokens=1)
    scheduler.add(second)
    step(scheduler)
    assert second.num_cached_tokens == 2


def forks(prompt: Sequence[int], number: int = 2, max_tokens: int = 3) -> list[Request]:
    first = request_of("a", prompt, max_tokens)
    rest = [request_of(f"a{i}", prompt, max_tokens, fork_of=first) for i in range(1, number)]
    return [first, *rest]


def test_samples_wait_for_the_prompt_of_the_first_and_copy_its_last_block() -> None:
    scheduler = scheduler_of(block_size=4, max_num_batched_tokens=4)
    first, second, third = forks([1, 2, 3, 4, 5, 6, 7], 3)
    for request in (first, second, third):
        scheduler.add(request)
    assert step(scheduler) == {"a": 4}
    assert step(scheduler) == {"a": 3}
    output = scheduler.schedule()
    assert dict(output.scheduled) == {first: 1, second: 1, third: 1}
    assert [r.block_table[0] for r in (first, second, third)] == [first.block_table[0]] * 3
    assert output.blocks_to_copy == [
        (first.block_table[1], second.block_table[1]),
        (first.block_table[1], third.block_table[1]),
    ]
    assert second.num_computed_tokens == 6
    complete(scheduler, output)
    run(scheduler)
    assert pool_of(scheduler).num_used == 0


def test_samples_of_a_prompt_that_ends_with_a_block_have_nothing_to_copy() -> None:
    scheduler = scheduler_of(block_size=2)
    first, second = forks([1, 2, 3, 4, 5])
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    output = scheduler.schedule()
    assert output.blocks_to_copy == [] and output.scheduled[second] == 1
    assert second.block_table[:2] == first.block_table[:2]
    complete(scheduler, output)


def test_those_behind_a_sample_that_waits_are_not_held_up() -> None:
    scheduler = scheduler_of(num_blocks=64, max_num_batched_tokens=6)
    for request in forks([1, 2, 3, 4, 5, 6, 7, 8], 2):
        scheduler.add(request)
    scheduler.add(request_of("x", 3))
    assert step(scheduler) == {"a": 6}
    assert step(scheduler) == {"a": 2, "x": 3}


def test_a_sample_whose_sibling_is_gone_computes_for_itself() -> None:
    scheduler = scheduler_of(max_num_batched_tokens=3, enable_prefix_caching=False)
    first, second = forks([1, 2, 3, 4, 5])
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    scheduler.abort("a")
    assert step(scheduler) == {"a1": 3}
    run(scheduler)


# Ending ----------------------------------------------------------------------------------------


def test_an_abort_frees_blocks_at_once_in_every_state() -> None:
    scheduler, (a, b, c) = crowded()
    while not c.num_preemptions:
        step(scheduler)
    scheduler.add(request_of("d", 1))
    for request in (a, scheduler.requests["d"], c, b):
        scheduler.abort(request.request_id)
        assert request.status is S.FINISHED_ABORTED and not request.block_table
        check(scheduler)
    assert pool_of(scheduler).num_free == 6 and not scheduler.has_unfinished
    assert scheduler.num_finished[S.FINISHED_ABORTED] == 4


def test_a_stranger_cannot_be_aborted_nor_anyone_twice() -> None:
    scheduler = scheduler_of()
    with pytest.raises(UnknownRequestError, match="'a'"):
        scheduler.abort("a")
    scheduler.add(request_of("a", 1))
    scheduler.abort("a")
    with pytest.raises(UnknownRequestError, match="'a'"):
        scheduler.abort("a")


def test_an_abort_while_the_batch_is_in_flight_frees_once() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", 3, max_tokens=1))
    scheduler.add(request_of("b", 3, max_tokens=1))
    output = scheduler.schedule()
    scheduler.abort("a")
    assert scheduler.update(output, {"a": 1, "b": 1})[0].request_id == "b"
    check(scheduler)
    assert pool_of(scheduler).num_used == 0


def test_one_that_finishes_frees_its_blocks_and_is_reported() -> None:
    scheduler = scheduler_of()
    a, b = request_of("a", 2, max_tokens=1), request_of("b", 2, max_tokens=2)
    scheduler.add(a)
    scheduler.add(b)
    assert complete(scheduler, scheduler.schedule()) == [a]
    assert scheduler.running == [b] and a.block_table == []
    assert complete(scheduler, scheduler.schedule()) == [b]
    assert scheduler.num_finished[S.FINISHED_LENGTH] == 2


def test_discarded_content_is_shared_with_nobody() -> None:
    scheduler = scheduler_of(block_size=2)
    scheduler.add(request_of("a", [1, 2, 3, 4, 5]))
    step(scheduler)
    table = list(scheduler.requests["a"].block_table)
    assert scheduler.finish("a", S.FINISHED_ERROR, discard=True) == table
    scheduler.add(request_of("b", [1, 2, 3, 4, 5]))
    assert step(scheduler) == {"b": 5}


# A step that fails -----------------------------------------------------------------------------


def test_a_step_that_is_rolled_back_leaves_everything_as_it_was() -> None:
    scheduler = scheduler_of(block_size=2)
    scheduler.add(request_of("a", 4, max_tokens=9))
    step(scheduler)
    scheduler.add(request_of("b", 3))
    a, b = scheduler.requests.values()
    before = (a.block_table[:], a.num_computed_tokens, pool_of(scheduler).num_used)
    output = scheduler.schedule()
    assert len(a.block_table) == 3 and b.status is S.RUNNING
    scheduler.rollback(output)
    check(scheduler)
    assert (a.block_table, a.num_computed_tokens, pool_of(scheduler).num_used) == before
    assert (b.status, b.block_table, b.num_computed_tokens) == (S.WAITING, [], 0)
    assert step(scheduler) == {"a": 1, "b": 3}


def test_what_was_preempted_waits_as_such_after_a_rollback() -> None:
    scheduler, (_, _, c) = crowded()
    while not c.num_preemptions:
        output = scheduler.schedule()
        if output.preempted:
            scheduler.rollback(output)
            check(scheduler)
        else:
            complete(scheduler, output)
    for request in list(scheduler.running):
        scheduler.abort(request.request_id)
    scheduler.rollback(scheduler.schedule())
    assert c.status is S.PREEMPTED
    check(scheduler)


def test_a_rollback_spares_who_was_aborted_meanwhile() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", 3))
    output = scheduler.schedule()
    scheduler.abort("a")
    scheduler.rollback(output)
    check(scheduler)
    assert pool_of(scheduler).num_used == 0


# A smaller pool --------------------------------------------------------------------------------


def test_a_smaller_pool_ends_who_can_never_be_served_any_more() -> None:
    scheduler = scheduler_of(num_blocks=8, block_size=2)
    long, waiting, short = request_of("a", 6), request_of("b", 7), request_of("c", 2)
    for request in (long, short):
        scheduler.add(request)
    step(scheduler)
    scheduler.add(waiting)
    assert scheduler.resize(3) == [long, waiting]
    assert long.status is waiting.status is S.FINISHED_IGNORED
    check(scheduler)
    with pytest.raises(InvalidRequestError, match="needs 8 tokens"):
        scheduler.add(request_of("d", 4, max_tokens=4))
    run(scheduler)
    assert short.status is S.FINISHED_LENGTH


def test_a_smaller_pool_preempts_as_many_as_it_must() -> None:
    scheduler = scheduler_of(num_blocks=6, block_size=2)
    for name in "abc":
        scheduler.add(request_of(name, 4, max_tokens=1 if name == "z" else 3))
    scheduler.resize(6)
    step(scheduler)
    running = len(scheduler.running)
    assert running >= 2
    assert scheduler.resize(4) == []
    output = scheduler.schedule()
    complete(scheduler, output)
    assert pool_of(scheduler).num_excess == 0
    run(scheduler)


def test_a_larger_pool_serves_longer_requests_again() -> None:
    scheduler = scheduler_of(num_blocks=8, block_size=2, max_model_len=12)
    scheduler.resize(1)
    assert scheduler.max_servable_tokens == 3
    scheduler.resize(8)
    assert scheduler.max_servable_tokens == 12


# A pool that can do less, and the line ---------------------------------------------------------


class PlainPool:
    """The least that a scheduler needs."""

    def __init__(self, num_blocks: int) -> None:
        self.ids = list(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self.ids)

    def allocate(self, n: int) -> list[int] | None:
        return None if n > len(self.ids) else [self.ids.pop() for _ in range(n)]

    def free(self, block_ids: Sequence[int]) -> None:
        self.ids += block_ids


def test_a_pool_that_only_allocates_and_frees_is_enough() -> None:
    pool = PlainPool(6)
    scheduler = Scheduler(EngineConfig(num_blocks=6, block_size=2), pool)
    for request in [*forks([1, 2, 3]), *(request_of(name, 3, max_tokens=6) for name in "xyz")]:
        scheduler.add(request)
    while scheduler.has_unfinished:
        output = scheduler.schedule()
        assert output.scheduled
        done = {
            r.request_id: TOKEN
            for r, n in output.scheduled.items()
            if r.num_computed_tokens + n == r.num_tokens
        }
        scheduler.update(output, done)
        scheduler.check_invariants()
    assert sorted(pool.ids) == list(range(6))
    with pytest.raises(InvariantError, match="cannot be resized"):
        scheduler.resize(3)


def test_the_line_skips_who_left_it() -> None:
    queue = WaitingQueue()
    requests = [request_of(name, 1, queue_key=(0, i)) for i, name in enumerate("abcd")]
    for request in reversed(requests):
        queue.push(request)
    queue.remove(requests[0])
    queue.remove(requests[2])
    assert list(queue) == [requests[1], requests[3]]
    assert (len(queue), requests[0] in queue, requests[1] in queue) == (2, False, True)
    assert queue.peek() is queue.pop() is requests[1]
    assert queue.pop() is requests[3] and len(queue) == 0


def test_gaps_in_the_line_do_not_pile_up() -> None:
    queue = WaitingQueue()
    first = request_of("a", 1, queue_key=(0, 0))
    queue.push(first)
    for i in range(1000):
        request = request_of("b", 1, queue_key=(1, i))
        queue.push(request)
        queue.remove(request)
    assert len(queue._heap) < 100 and queue.peek() is first


def _computed_too_much(scheduler: Scheduler) -> None:
    scheduler.running[0].num_computed_tokens = scheduler.running[0].num_tokens


def _out_of_order(scheduler: Scheduler) -> None:
    scheduler.running.reverse()


def _waiting_with_blocks(scheduler: Scheduler) -> None:
    scheduler.waiting.peek().num_computed_tokens = 1


def _lost(scheduler: Scheduler) -> None:
    scheduler.running.pop()


def _too_many(scheduler: Scheduler) -> None:
    scheduler.max_num_seqs = scheduler._most_running = 1


def _table_lost(scheduler: Scheduler) -> None:
    scheduler.running[0].block_table.pop()


DAMAGES = [
    *[_computed_too_much, _out_of_order, _waiting_with_blocks, _lost, _too_many, _table_lost]
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_check_sees_damage(damage: Any) -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    for name in "abc":
        scheduler.add(request_of(name, 3))
    step(scheduler)
    damage(scheduler)
    with pytest.raises(InvariantError):
        scheduler.check_invariants()


# Cost ------------------------------------------------------------------------------------------


class CountingQueue(WaitingQueue):
    """A line that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "asked":
            self.asked[name] += 1
        return super().__getattribute__(name)


def test_a_long_line_makes_a_step_no_dearer() -> None:
    asked = []
    for number in (100, 10_000):
        scheduler = scheduler_of(num_blocks=64, max_num_seqs=4)
        queue = scheduler.waiting = CountingQueue()
        for i in range(number):
            scheduler.add(request_of(f"r{i}", [i, i + 1], max_tokens=3))
        queue.asked.clear()
        for _ in range(12):
            step_without_checks(scheduler)
        asked.append(queue.asked)
    assert asked[0] == asked[1] and asked[0]["pop"] >= 12


def step_without_checks(scheduler: Scheduler) -> None:
    output = scheduler.schedule()
    scheduler.update(output, dict.fromkeys((r.request_id for r in output.scheduled), TOKEN))
