"""Writes the event log: compares what the parts did with what it last saw, and says it.

The parts know nothing of events.  They say what they decided (`SchedulerOutput`, block tables
and statuses on the requests), so that a reader's own part is as visible as the package's.
"""

from __future__ import annotations

from collections.abc import Callable

from paged_engine import events as ev
from paged_engine.config import EngineConfig
from paged_engine.protocols import BlockPoolProtocol, SchedulerOutput
from paged_engine.replay import EngineState, reduce
from paged_engine.request import Request, RequestStatus


class Recorder:
    """Turns changes into events.

    Args:
        config: With the sizes of the pool.
        pool: Whose evictions are recorded, if it reports them (`take_changes`).
        clock: Gives the time in seconds.

    Attributes:
        log: The events.
        base: The state before the first event that the log still has.
        step: The number of the present step, or of the last one between steps.
    """

    def __init__(
        self, config: EngineConfig, pool: BlockPoolProtocol, clock: Callable[[], float]
    ) -> None:
        self.base = EngineState()
        self.log = ev.EventLog(config.max_events, on_drop=self._fold)
        self.step = 0
        self._pool = pool
        getattr(pool, "take_changes", list)()  # from now on they are kept
        self._clock = clock
        self._block_size = config.block_size
        self._tables: dict[Request, list[int]] = {}  # as the log has them
        self._running: set[Request] = set()
        assert config.num_blocks is not None
        self.log.append(
            ev.EngineStarted(
                clock(),
                0,
                config.num_blocks,
                config.block_size,
                config.max_num_seqs,
                config.max_num_batched_tokens,
            )
        )

    def queued(self, request: Request) -> None:
        self._tables[request] = []
        self.log.append(
            ev.Queued(
                self._clock(),
                self.step,
                request.request_id,
                tuple(request.prompt_token_ids),
                request.max_tokens,
                request.priority,
                request.seed,
                request.sample_index,
                None if request.fork_of is None else request.fork_of.request_id,
            )
        )

    def step_began(self, budget: int) -> None:
        self.step += 1
        self.log.append(ev.StepBegan(self._clock(), self.step, budget))

    def scheduled(self, output: SchedulerOutput) -> None:
        """What `schedule` decided, in the order in which it can have happened."""
        now, log = self._clock(), self.log
        for request in output.preempted:  # it may have been admitted again, with other blocks
            self._free(request, self._tables[request], now)
            self._running.discard(request)
            log.append(ev.Preempted(now, self.step, request.request_id))
        self._pool_changes(now)
        for request in output.scheduled:
            if request not in self._running and request in self._tables:
                self._running.add(request)
                log.append(
                    ev.Admitted(now, self.step, request.request_id, request.num_cached_tokens)
                )
            self._sync_table(request, now)
        for source, target in output.blocks_to_copy:
            log.append(ev.Copied(now, self.step, source, target))
        for request, num_tokens in output.scheduled.items():
            if request in self._tables:
                start = request.num_computed_tokens
                log.append(ev.Scheduled(now, self.step, request.request_id, start, num_tokens))

    def rolled_back(self, output: SchedulerOutput) -> None:
        now = self._clock()
        for request in output.scheduled:
            self._sync_table(request, now)
            if not request.is_finished and request.status is not RequestStatus.RUNNING:
                self._running.discard(request)
                self.log.append(
                    ev.Requeued(now, self.step, request.request_id, request.status.value)
                )
        self._pool_changes(now)
        self.log.append(ev.StepEnded(now, self.step, 0, failed=True))

    def computed(self, request: Request, now: float) -> None:
        self.log.append(
            ev.Computed(now, self.step, request.request_id, request.num_computed_tokens)
        )

    def token(self, request: Request, token_id: int, text: str, now: float) -> None:
        self.log.append(ev.Token(now, self.step, request.request_id, token_id, text))

    def ended(self, request: Request, text: str, now: float) -> None:
        """The request has a final status and has given up its blocks."""
        self._sync_table(request, now)
        self._pool_changes(now)
        del self._tables[request]
        self._running.discard(request)
        if request.status is RequestStatus.FINISHED_ABORTED:
            self.log.append(ev.Aborted(now, self.step, request.request_id))
        else:
            self.log.append(
                ev.Finished(now, self.step, request.request_id, request.status.value, text)
            )

    def step_ended(self, num_tokens: int) -> None:
        now = self._clock()
        self._pool_changes(now)
        self.log.append(ev.StepEnded(now, self.step, num_tokens))

    def pool_resized(self, num_usable: int) -> None:
        now = self._clock()
        self._pool_changes(now)
        self.log.append(ev.PoolResized(now, self.step, num_usable))

    def parameters_changed(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.log.append(
            ev.ParametersChanged(self._clock(), self.step, max_num_seqs, max_num_batched_tokens)
        )

    def _sync_table(self, request: Request, now: float) -> None:
        """Say how the request's table differs from the one in the log."""
        known, table = self._tables.get(request), request.block_table
        if known is None or len(table) == len(known):  # they grow and shrink at their end
            return
        if len(table) < len(known):
            self._free(request, known[len(table) :], now)
            return
        num_hits = 0 if known else request.num_cached_tokens // self._block_size
        hits, new = tuple(table[len(known) : num_hits]), tuple(table[max(len(known), num_hits) :])
        if hits:
            self.log.append(ev.Hit(now, self.step, request.request_id, hits))
        if new:
            self.log.append(ev.Allocated(now, self.step, request.request_id, new))
        known.extend(table[len(known) :])

    def _free(self, request: Request, block_ids: list[int], now: float) -> None:
        """Say that the end of its table was given up."""
        if gone := tuple(block_ids):
            del self._tables[request][-len(gone) :]
            self.log.append(ev.Freed(now, self.step, request.request_id, gone))

    def _pool_changes(self, now: float) -> None:
        take = getattr(self._pool, "take_changes", None)
        for change in take() if take is not None else ():
            if change.block_hash is None:
                self.log.append(ev.Evicted(now, self.step, change.block_id))
            else:
                self.log.append(ev.Cached(now, self.step, change.block_id, change.block_hash))

    def _fold(self, event: ev.Event) -> None:
        reduce(self.base, event)
        if isinstance(event, (ev.Finished, ev.Aborted)):
            del self.base.requests[event.request_id]
