"""Who computes how many tokens in the next step.

There are no phases.  Each request has `num_tokens` known and `num_computed_tokens` in the
cache; every step lets the second catch up with the first, under one token budget.  A
decoding request is one token behind, a new one its whole prompt, a preempted one everything.
The idea is vLLM v1's; iteration-level scheduling is Orca's (Yu et al., OSDI 2022).

One step, in order:

1. running requests, first in line first, each leaving one token of the budget for everyone
   behind it, so that a long prompt never silences those that decode;
2. where a block is missing, the last in line is preempted: it loses its blocks and will
   compute its tokens again;
3. if nobody was preempted, waiting requests are admitted, first in line first, as long as
   budget, seats and blocks last.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from operator import attrgetter

from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidRequestError, InvariantError, UnknownRequestError
from paged_engine.protocols import BlockPoolProtocol, SchedulerOutput
from paged_engine.request import Request, RequestStatus, check_servable
from paged_engine.waiting_queue import WaitingQueue

__all__ = ["Scheduler", "SchedulerOutput"]


class Scheduler:
    """Continuous batching over a pool of KV blocks.

    Args:
        config: The limits; `config.max_servable_tokens` must be known.
        pool: Any object with `allocate`, `free` and `num_free`.  With the methods of
            :class:`BlockPool` prefixes are shared and the pool can be resized.
    """

    def __init__(self, config: EngineConfig, pool: BlockPoolProtocol) -> None:
        if config.max_servable_tokens is None:
            raise InvariantError("the scheduler needs a config with num_blocks or max_model_len")
        self.pool = pool
        self.block_size = config.block_size
        self.max_num_seqs = config.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens
        self.max_model_len = config.max_model_len
        self.max_servable_tokens: int = config.max_servable_tokens
        self.policy = config.policy
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # by queue_key
        self.requests: dict[str, Request] = {}  # all that are not finished
        self.num_finished = dict.fromkeys((s for s in RequestStatus if s.is_finished), 0)
        self._num_added = 0
        self._most_running = config.max_num_seqs  # in the last step; a new limit is of the next
        self._sharing: BlockPool | None = pool if _can_share(pool) else None  # type: ignore[assignment]

    @property
    def has_unfinished(self) -> bool:
        return bool(self.requests)

    # ------------------------------------------------------------------ coming and going

    def add(self, request: Request) -> None:
        """Put a request in line, at any time, also while others decode.

        Raises:
            InvalidRequestError: Its id is taken, or it could never be served.
        """
        if request.request_id in self.requests:
            raise InvalidRequestError(
                f"a request {request.request_id!r} is already here; use another id"
            )
        if request.num_prompt_tokens < 1:
            raise InvalidRequestError("the prompt is empty; expected at least one token")
        check_servable(request.num_prompt_tokens, request.max_tokens, self.max_servable_tokens)
        rank = request.priority if self.policy == "priority" else 0
        request.queue_key = (rank, self._num_added)
        self._num_added += 1
        self.requests[request.request_id] = request
        self.waiting.push(request)

    def abort(self, request_id: str) -> None:
        """End a request in any state; its blocks are free at once.

        Raises:
            UnknownRequestError: There is no such unfinished request.
        """
        self.finish(request_id, RequestStatus.FINISHED_ABORTED)

    def finish(self, request_id: str, status: RequestStatus, *, discard: bool = False) -> list[int]:
        """End a request with `status`.

        Args:
            request_id: Of an unfinished request.
            status: A finished one.
            discard: Its KV is not to be trusted: nobody may share it any more.

        Returns:
            With `discard`, the ids of the blocks that nobody holds any more.
        """
        request = self.requests.get(request_id)
        if request is None:
            raise UnknownRequestError(
                f"no unfinished request {request_id!r}; it was never added or has ended"
            )
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
        request.set_status(status)
        return self._release(request, discard=discard)

    # ------------------------------------------------------------------ one step

    def schedule(self) -> SchedulerOutput:
        """Decide the next step and reserve the blocks it writes to."""
        output = SchedulerOutput()
        self._return_excess(output)
        budget = self._schedule_running(output)
        if not output.preempted:
            self._admit(output, budget)
        return output

    def update(self, output: SchedulerOutput, sampled: Mapping[str, int]) -> list[Request]:
        """Take in what the step computed.

        Args:
            output: What `schedule` returned.
            sampled: The new token of each request whose known tokens are now all computed.

        Returns:
            The requests that finished.
        """
        finished = []
        for request, num_tokens in output.scheduled.items():
            if request.status.is_finished:  # aborted while the batch was in flight
                continue
            request.num_computed_tokens += num_tokens
            if self._sharing is not None:
                self._sharing.publish(
                    request.block_table, request.token_ids, request.num_computed_tokens
                )
            if request.request_id in sampled:
                request.append_token(sampled[request.request_id])
                if request.is_finished:
                    finished.append(request)
                    self._release(request)
        if finished:
            self.running = [r for r in self.running if not r.is_finished]
        return finished

    def rollback(self, output: SchedulerOutput) -> None:
        """Undo `schedule` after a step that failed, so that it can be tried again.

        Requests that it admitted wait again and blocks that it took are free again.  What it
        preempted stays preempted: others may have written into those blocks.
        """
        for request in reversed(output.scheduled):
            if request.is_finished:
                continue
            kept = output.table_lengths[request]
            self.pool.free(request.block_table[kept:])
            del request.block_table[kept:]
            if request in output.admitted:
                request.num_computed_tokens = request.num_cached_tokens = 0
                self.running.remove(request)
                self._to_waiting(request, output.admitted[request])

    def resize(self, num_usable: int) -> list[Request]:
        """Change how many blocks may be in use at once.

        Requests are preempted in the next step as far as that is needed.

        Returns:
            Those that could never be served any more, ended as FINISHED_IGNORED.
        """
        if self._sharing is None:
            raise InvariantError("this pool cannot be resized; it has no method resize")
        self._sharing.resize(num_usable)
        by_pool = num_usable * self.block_size + 1
        self.max_servable_tokens = min(self.max_model_len or by_pool, by_pool)
        too_long = [
            r
            for r in self.requests.values()
            if r.num_prompt_tokens + r.max_tokens > self.max_servable_tokens
        ]
        for request in too_long:
            self.finish(request.request_id, RequestStatus.FINISHED_IGNORED)
        return too_long

    # ------------------------------------------------------------------ inner workings

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Serve running requests; returns what is left of the budget."""
        budget = self.max_num_batched_tokens
        for place, request in enumerate(list(self.running)):
            if budget == 0 or place >= len(self.running):  # those behind were preempted
                break
            behind = len(self.running) - place - 1
            num_tokens = min(
                request.num_tokens - request.num_computed_tokens, max(1, budget - behind)
            )
            if not self._grow(request, num_tokens, output):
                break
            output.scheduled[request] = num_tokens
            budget -= num_tokens
        return budget

    def _grow(self, request: Request, num_tokens: int, output: SchedulerOutput) -> bool:
        """Give a running request the blocks for `num_tokens` more; False if it was preempted."""
        output.table_lengths[request] = len(request.block_table)
        missing = self._blocks_for(request.num_computed_tokens + num_tokens) - len(
            request.block_table
        )
        if missing <= 0:
            return True
        while (new := self.pool.allocate(missing)) is None:
            victim = self.running[-1]
            self._preempt(victim, output)
            if victim is request:
                return False
        request.block_table += new
        return True

    def _preempt(self, request: Request, output: SchedulerOutput) -> None:
        self.running.remove(request)
        self.pool.free(request.block_table)
        request.block_table.clear()
        request.num_computed_tokens = request.num_cached_tokens = 0
        request.num_preemptions += 1
        self._to_waiting(request, RequestStatus.PREEMPTED)
        output.preempted.append(request)

    def _return_excess(self, output: SchedulerOutput) -> None:
        """Keep to limits that were lowered while requests run."""
        while len(self.running) > self.max_num_seqs:
            self._preempt(self.running[-1], output)
        self._most_running = self.max_num_seqs
        while self._sharing is not None and self._sharing.num_excess and self.running:
            self._preempt(self.running[-1], output)

    def _admit(self, output: SchedulerOutput, budget: int) -> None:
        reserved = sum(self._blocks_missing(r) for r in self.running)
        passed_over: list[Request] = []
        while budget and len(self.waiting) and len(self.running) < self.max_num_seqs:
            request = self.waiting.peek()
            if self._waits_for_fork(request):
                passed_over.append(self.waiting.pop())
                continue
            num_tokens = self._try_admit(request, budget, reserved, output)
            if num_tokens == 0:
                break
            reserved += self._blocks_missing(request)
            budget -= num_tokens
        for request in passed_over:
            self.waiting.push(request)

    def _try_admit(
        self, request: Request, budget: int, reserved: int, output: SchedulerOutput
    ) -> int:
        """Admit the first in line if all it knows fits beside what the others will need.

        Returns:
            How many tokens it computes in this step; 0 if it has to wait.
        """
        hits, copy_from = self._find_shared(request)
        start = len(hits) * self.block_size
        if copy_from is not None:
            assert request.fork_of is not None
            start = request.fork_of.num_prompt_tokens - 1
        num_tokens = min(request.num_tokens - start, budget)
        missing = self._blocks_for(request.num_tokens + 1) - len(hits)
        if self.running and self._num_free_after(hits) < missing + reserved:
            return 0
        wanted = self._blocks_for(start + num_tokens) - len(hits)
        new = self._sharing.allocate(wanted, hits) if self._sharing else self.pool.allocate(wanted)
        if new is None:
            return 0
        if copy_from is not None:
            output.blocks_to_copy.append((copy_from, new[0]))
        self.waiting.pop()
        output.admitted[request] = request.status
        output.table_lengths[request] = 0
        output.scheduled[request] = num_tokens
        request.set_status(RequestStatus.RUNNING)
        request.block_table = [*hits, *new]
        request.num_computed_tokens = request.num_cached_tokens = start
        insort(self.running, request, key=attrgetter("queue_key"))
        return num_tokens

    def _find_shared(self, request: Request) -> tuple[list[int], int | None]:
        """Blocks that already hold the beginning of `request`.

        Returns:
            The full blocks to share, and the part-filled block to copy, if any: a sample
            takes over its sibling's prompt but for the last token, which it computes itself
            to have logits of its own.
        """
        if self._sharing is None:
            return [], None
        hits = self._sharing.match_prefix(request.token_ids)
        parent = request.fork_of
        if parent is None or parent.status is not RequestStatus.RUNNING:
            return hits, None
        num_full, rest = divmod(parent.num_prompt_tokens - 1, self.block_size)
        if len(hits) > num_full:  # it has been here before; its own output is cached too
            return hits, None
        # the block behind the last full one is written to by both: copy on write
        return parent.block_table[:num_full], parent.block_table[num_full] if rest else None

    def _waits_for_fork(self, request: Request) -> bool:
        """Whether its sibling is still computing the prompt that it will share."""
        parent = request.fork_of
        return (
            self._sharing is not None
            and parent is not None
            and parent.status is RequestStatus.RUNNING
            and parent.num_computed_tokens < parent.num_prompt_tokens - 1
        )

    def _to_waiting(self, request: Request, status: RequestStatus) -> None:
        request.set_status(status)
        self.waiting.push(request)

    def _release(self, request: Request, *, discard: bool = False) -> list[int]:
        unheld: list[int] = []
        if discard and self._sharing is not None:
            unheld = self._sharing.discard(request.block_table)
        else:
            self.pool.free(request.block_table)
            unheld = list(request.block_table)
        request.block_table.clear()
        del self.requests[request.request_id]
        self.num_finished[request.status] += 1
        return unheld

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _blocks_missing(self, request: Request) -> int:
        """Blocks it still needs to hold all it knows and the next token."""
        return max(0, self._blocks_for(request.num_tokens + 1) - len(request.block_table))

    def _num_free_after(self, hits: Sequence[int]) -> int:
        return self._sharing.num_free_after(hits) if self._sharing else self.pool.num_free

    # ------------------------------------------------------------------ invariants

    def check_invariants(self) -> None:
        """Check the scheduler's state against the pool's.

        Raises:
            InvariantError: With the first thing that does not hold.
        """
        if len(self.running) > self._most_running:
            raise InvariantError(f"{len(self.running)} run, above {self._most_running}")
        if self.running != sorted(self.running, key=attrgetter("queue_key")):
            raise InvariantError("the running requests are out of order")
        if len(self.running) + len(self.waiting) != len(self.requests):
            raise InvariantError("a request is neither running nor waiting, or both")
        for request in self.requests.values():
            is_running = request.status is RequestStatus.RUNNING
            if is_running != (request in self.running) or is_running == (request in self.waiting):
                raise InvariantError(f"{request} is in the wrong queue")
            if not is_running and (request.block_table or request.num_computed_tokens):
                raise InvariantError(f"{request} waits but holds blocks or computed tokens")
            if is_running and not request.num_computed_tokens < request.num_tokens:
                raise InvariantError(f"{request} has nothing left to compute")
            if self._blocks_for(request.num_computed_tokens) > len(request.block_table):
                raise InvariantError(f"{request} has computed more than its blocks hold")
        if self._sharing is not None:
            self._sharing.check_invariants([r.block_table for r in self.requests.values()])


def _can_share(pool: object) -> bool:
    methods = ("match_prefix", "publish", "num_free_after", "discard", "num_excess", "resize")
    return all(hasattr(pool, name) for name in methods)
