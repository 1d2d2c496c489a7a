"""One step of the engine: schedule, compute, sample, take in; or roll back.

The core knows sequences only.  What a user's request is, and how its outputs look, is the
engine's affair (`paged_engine.engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from paged_engine.batch import pack
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError, InvariantError
from paged_engine.interrupts import deferred_interrupt
from paged_engine.kv_cache import PagedKVCache, num_blocks_for
from paged_engine.models import ModelRunner
from paged_engine.outputs import Sample
from paged_engine.protocols import BlockPoolProtocol, SchedulerOutput, SchedulerProtocol
from paged_engine.recorder import Recorder
from paged_engine.replay import BlockState, EngineState, RequestState
from paged_engine.request import Request, RequestStatus
from paged_engine.sampler import Sampled, sample, usable_rows


class EngineCore:
    """Drives the parts.

    Args:
        runner: The model.
        scheduler, pool: The parts that decide.
        config: With `num_blocks` and `max_model_len` known.
        recorder: Writes the event log, if there is one.
        clock: Gives the time in seconds.

    Attributes:
        samples: What is being served, by the id of its request.
        advanced: Samples that got tokens or ended since they were last taken from here.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: SchedulerProtocol,
        pool: BlockPoolProtocol,
        config: EngineConfig,
        recorder: Recorder | None,
        clock: Callable[[], float],
    ) -> None:
        assert config.num_blocks is not None
        self.runner = runner
        self.scheduler = scheduler
        self.pool = pool
        self.config = config
        self.recorder = recorder
        self.clock = clock
        self.cache = PagedKVCache(
            runner.kv_shape,
            config.num_blocks,
            config.block_size,
            dtype=runner.dtype,
            device=runner.device,
        )
        self.samples: dict[str, Sample] = {}
        self.advanced: dict[Sample, None] = {}
        self._in_step = False

    def add(self, sample_: Sample) -> None:
        """Put a sequence in line."""
        request = sample_.request
        self.scheduler.add(request)
        self.samples[request.request_id] = sample_
        if self.recorder is not None:
            self.recorder.queued(request)

    def abort(self, sample_: Sample) -> None:
        """End a sequence in any state."""
        self.scheduler.abort(sample_.request.request_id)
        self._end(sample_, self.clock())

    def step(self) -> None:
        """Compute one step; who got tokens or ended is in `advanced`.

        Raises:
            InvariantError: The parts disagree, or the scheduler serves nobody.
            Exception: Whatever the model raised.  Requests and pool are as before the step,
                which can be tried again.
        """
        self.require_between_steps("step")
        output: SchedulerOutput | None = None  # there is nothing to roll back yet
        is_computed = False
        try:
            self._in_step = True
            with self.undivided():
                output = SchedulerOutput()
                output = self._schedule()
            sampled = self._compute(output)
            with self.undivided():
                is_computed = True
                self._take_in(output, sampled)
        except BaseException:
            if output is not None and not is_computed:
                with self.undivided():
                    self._roll_back(output)
            raise
        finally:
            self._in_step = False

    def require_between_steps(self, what: str) -> None:
        """Refuse what a listener must not do while a step is under way.

        Raises:
            InvariantError: One is.
        """
        if self._in_step:
            raise InvariantError(
                f"{what} was called inside a step, by a listener or another thread; call it when "
                f"the step has ended"
            )

    def resize(self, num_usable: int) -> None:
        """Change how many blocks may be in use; ends what can never be served any more."""
        self.require_between_steps("resize_pool")
        scheduler: Any = self.scheduler
        if not hasattr(scheduler, "resize"):
            raise InvalidConfigError(
                "this scheduler's pool cannot be resized; expected it to have a method resize"
            )
        ended = scheduler.resize(num_usable)
        if self.recorder is not None:
            self.recorder.pool_resized(num_usable)
        for request in ended:
            self._end(self.samples[request.request_id], self.clock())

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Inside, neither Ctrl-C nor a listener comes between two parts of one change."""
        held = nullcontext() if self.recorder is None else self.recorder.log.held()
        with deferred_interrupt(), held:
            yield

    def set_limits(self, max_num_seqs: int | None, max_num_batched_tokens: int | None) -> None:
        """Change the batch limits from the next step on; None leaves one as it is."""
        scheduler: Any = self.scheduler
        given = {
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
        }
        if not all(hasattr(scheduler, name) for name in given):
            raise InvalidConfigError(
                f"this scheduler's limits cannot be changed; expected it to have the attributes "
                f"{' and '.join(given)}"
            )
        limits: dict[str, Any] = {
            name: getattr(scheduler, name) if value is None else value
            for name, value in given.items()
        }
        replace(self.config, **limits)  # checks them
        for name, value in limits.items():
            setattr(scheduler, name, value)
        if self.recorder is not None:
            self.recorder.parameters_changed(**limits)

    def snapshot(self) -> EngineState:
        """The state of pool and unfinished requests now, as `replay` tells it from the log."""
        pool: Any = self.pool
        scheduler: Any = self.scheduler
        blocks = [
            BlockState(b.ref_cnt, b.prefix.block_hash if b.is_cached and b.prefix else None)
            for b in pool.blocks
        ]
        requests = [sample.request for sample in self.samples.values()]
        return EngineState(
            block_size=self.config.block_size,
            num_usable=pool.num_usable,
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            blocks=blocks,
            requests={
                r.request_id: RequestState(
                    r.request_id,
                    tuple(r.prompt_token_ids),
                    r.status.value,
                    r.output_token_ids,
                    r.num_computed_tokens,
                    list(r.block_table),
                )
                for r in requests
            },
        )

    # ------------------------------------------------------------------ inner workings

    def _schedule(self) -> SchedulerOutput:
        if self.recorder is not None:
            budget = getattr(self.scheduler, "max_num_batched_tokens", None)
            self.recorder.step_began(budget or self.config.max_num_batched_tokens)
        output = self.scheduler.schedule()
        if not isinstance(output, SchedulerOutput):
            raise InvariantError(
                f"the scheduler's schedule returned {output!r}; expected a SchedulerOutput"
            )
        now = self.clock()
        for request in output.scheduled:
            if request.first_scheduled_time is None:
                request.first_scheduled_time = now
        if self.recorder is not None:
            self.recorder.scheduled(output)
        if self.samples and not (output.scheduled or output.preempted):
            raise InvariantError(
                f"the scheduler scheduled nothing while {len(self.samples)} requests wait; "
                f"every step must serve somebody"
            )
        return output

    def _compute(self, output: SchedulerOutput) -> dict[Request, Sampled | None]:
        """Run the model and sample.

        Returns:
            For each scheduled request whose known tokens are now all computed its next token,
            and None for each whose logits are unusable.
        """
        scheduled = {r: n for r, n in output.scheduled.items() if not r.is_finished}
        if not scheduled:  # all that could be done was to preempt, or a listener aborted them
            return {}
        self.cache.copy_blocks(output.blocks_to_copy)
        batch = pack(scheduled, self.config.block_size, self.runner.device)
        logits = self.runner.forward(batch, self.cache)
        result: dict[Request, Sampled | None] = {}
        rows: list[int] = []
        requests: list[Request] = []
        usable = usable_rows(logits)
        for row, (request, num_tokens) in enumerate(scheduled.items()):
            if not usable[row]:
                result[request] = None
            elif request.num_computed_tokens + num_tokens == request.num_tokens:
                rows.append(row)
                requests.append(request)
        if rows:
            chosen = logits if len(rows) == len(usable) else logits[rows]
            result.update(zip(requests, sample(chosen, requests), strict=True))
        return result

    def _roll_back(self, output: SchedulerOutput) -> None:
        """Requests and pool as before the step, as far as the scheduler can."""
        written = {
            block_id
            for r in output.scheduled
            for block_id in r.block_table[r.num_computed_tokens // self.config.block_size :]
        }
        rollback = getattr(self.scheduler, "rollback", None)
        if rollback is not None:  # one that cannot keeps its blocks, and computes again
            rollback(output)
        for sample_ in self.samples.values():
            written.difference_update(sample_.request.block_table)
        self.cache.zero_blocks(sorted(written))  # what the model left there may be NaN
        if self.recorder is not None:
            self.recorder.rolled_back(output)

    def _take_in(self, output: SchedulerOutput, sampled: Mapping[Request, Sampled | None]) -> None:
        """Hand the tokens to the scheduler, the log and the users."""
        for request, choice in sampled.items():
            if choice is None and not request.is_finished:
                self._fail(request)
        tokens = {r.request_id: c.token_id for r, c in sampled.items() if c is not None}
        self.scheduler.update(output, tokens)
        now = self.clock()
        for request in output.scheduled:
            sample_ = self.samples.get(request.request_id)
            if sample_ is None:  # aborted by a listener while the batch was in flight
                continue
            choice = sampled.get(request)
            if choice is not None:
                if request.first_token_time is None:
                    request.first_token_time = now
                self._take_token(sample_, choice, now)
            elif self.recorder is not None and not request.is_finished:
                self.recorder.computed(request, now)
            if request.is_finished and request.request_id in self.samples:
                self._end(sample_, now)
        if self.recorder is not None:
            self.recorder.step_ended(output.num_scheduled_tokens)

    def _take_token(self, sample_: Sample, choice: Sampled, now: float) -> None:
        request = sample_.request
        self.advanced[sample_] = None
        text = sample_.push(choice.token_id, choice.logprob)
        if self.recorder is not None:
            self.recorder.token(request, choice.token_id, text, now)
        if sample_.failure is not None and not request.is_finished:
            request.stop_reason = sample_.failure
            self._finish(request, RequestStatus.FINISHED_ERROR)
        elif sample_.stopped_by is not None and not request.is_finished:
            request.stop_reason = sample_.stopped_by
            self._finish(request, RequestStatus.FINISHED_STOPPED)

    def _fail(self, request: Request) -> None:
        """End a request whose logits are not numbers, and wipe what it leaves behind."""
        unheld = self._finish(request, RequestStatus.FINISHED_ERROR, discard=True)
        self.cache.zero_blocks(unheld)

    def _finish(
        self, request: Request, status: RequestStatus, *, discard: bool = False
    ) -> list[int]:
        finish = getattr(self.scheduler, "finish", None)
        if finish is not None:
            unheld: list[int] = finish(request.request_id, status, discard=discard)
            return unheld
        block_ids = list(request.block_table)
        self.scheduler.abort(request.request_id)
        request.status = status  # one that knows only abort calls every end so
        return block_ids

    def _end(self, sample_: Sample, now: float) -> None:
        """A sample has a final status: tell the log, and forget it."""
        request = sample_.request
        request.finished_time = now
        text = sample_.finish()
        del self.samples[request.request_id]
        self.advanced[sample_] = None
        if self.recorder is not None:
            self.recorder.ended(request, text, now)


def resolve_config(config: EngineConfig, runner: ModelRunner, pool: Any) -> EngineConfig:
    """Fill in what the configuration left open."""
    max_model_len = config.max_model_len or runner.max_model_len
    if max_model_len > runner.max_model_len:
        raise InvalidConfigError(
            f"max_model_len is {max_model_len} but the model was made for {runner.max_model_len} "
            f"positions; expected at most that"
        )
    num_blocks = config.num_blocks
    if pool is not None:
        num_blocks = getattr(pool, "num_blocks", pool.num_free)
        if config.num_blocks not in (None, num_blocks):
            raise InvalidConfigError(
                f"num_blocks is {config.num_blocks} but the block pool has {num_blocks}; expected "
                f"the same number, or none"
            )
        block_size = getattr(pool, "block_size", config.block_size)
        if block_size != config.block_size:
            raise InvalidConfigError(
                f"block_size is {config.block_size} but the block pool's is {block_size}"
            )
    elif num_blocks is None:
        num_blocks = num_blocks_for(
            runner.kv_shape,
            config.block_size,
            dtype=runner.dtype,
            device=runner.device,
            memory=config.kv_cache_memory,
            most_tokens=config.max_num_seqs * max_model_len,
        )
    assert num_blocks is not None
    return config.resolved(num_blocks=num_blocks, max_model_len=max_model_len)
