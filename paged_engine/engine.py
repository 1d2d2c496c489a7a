"""The engine: requests in, tokens out, one step at a time.

    engine = ContinuousEngine.from_pretrained()
    print(engine.generate("The sky is blue because")[0].text)

A step asks the scheduler what to compute, packs it, runs the model, samples, and hands the
tokens back to the scheduler.  Requests may be added and aborted between any two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, cast

from paged_engine.attention import Attend
from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.console import event_printer
from paged_engine.detokenizer import Tokenizer
from paged_engine.engine_core import EngineCore, resolve_config
from paged_engine.errors import InvalidConfigError, UnknownRequestError
from paged_engine.events import EventLog
from paged_engine.intake import Intake, one_each
from paged_engine.models.choice import choose_runner
from paged_engine.outputs import UserRequest
from paged_engine.prompts import Prompt, as_list
from paged_engine.protocols import BlockPoolProtocol, SchedulerProtocol
from paged_engine.recorder import Recorder
from paged_engine.replay import EngineState
from paged_engine.request import Request, RequestOutput, SamplingParams
from paged_engine.scheduler import Scheduler

SchedulerFactory = Callable[[EngineConfig, BlockPoolProtocol], SchedulerProtocol]


class ContinuousEngine:
    """Serves many requests at once with one model.

    Args:
        model: Any causal LM of transformers whose attention goes through its registry, or any
            :class:`paged_engine.models.ModelRunner`.
        tokenizer: One of transformers; without it prompts are token ids and text is empty.
        config: The limits.  What it leaves open is decided from the model and the device.
        scheduler: Your own, as an object or as a class that is called with (config, pool).
        block_pool: Your own.
        attention: "cpu" (C++), "sdpa", "reference", or your own function
            (:class:`paged_engine.attention.Attend`); None: the fastest that works here, fused with
            the rest of the model where that is known.
        request: Your own class in place of :class:`Request`, derived from it.
        verbose: Print what happens.
        owns_model: Nobody else runs this model: where the engine packs weights for the processor,
            it frees the model's own.
        clock: Gives the time in seconds, for tests and simulations.

    Raises:
        UnsupportedModelError: The model cannot be served token for token; it says why.
        InvalidConfigError: The configuration does not fit the model or the device.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        scheduler: SchedulerProtocol | SchedulerFactory | None = None,
        block_pool: BlockPoolProtocol | None = None,
        attention: str | Attend | None = None,
        request: type[Request] = Request,
        verbose: bool = False,
        owns_model: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        config = EngineConfig() if config is None else config
        runner = choose_runner(
            model, attention, config.block_size, check=config.probe, owns_model=owns_model
        )
        pool = _pool_of(scheduler, block_pool)
        self.config = resolve_config(config, runner, pool)
        assert self.config.num_blocks is not None
        if pool is None:
            pool = BlockPool(
                self.config.num_blocks,
                self.config.block_size,
                enable_prefix_caching=self.config.enable_prefix_caching,
            )
        if scheduler is None:
            scheduler = Scheduler(self.config, pool)
        elif isinstance(scheduler, type) or not hasattr(scheduler, "schedule"):
            scheduler = cast(SchedulerFactory, scheduler)(self.config, pool)
        recorder = None
        if config.record_events or verbose:
            recorder = Recorder(self.config, pool, clock)
            if verbose:
                recorder.log.subscribe(event_printer())
        self.core = EngineCore(
            runner, cast(SchedulerProtocol, scheduler), pool, self.config, recorder, clock
        )
        self.tokenizer = tokenizer
        self._intake = Intake(tokenizer, self.core, self._is_taken, request)
        self._users: dict[str, UserRequest] = {}  # whose last output was not handed out yet
        self._undelivered: list[RequestOutput] = []

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | None = None,
        *,
        dtype: Any = "float32",
        device: str | None = None,
        scheduler: SchedulerProtocol | SchedulerFactory | None = None,
        block_pool: BlockPoolProtocol | None = None,
        attention: str | Attend | None = None,
        verbose: bool = False,
        progress: bool = True,
        **config: Any,
    ) -> ContinuousEngine:
        """An engine with a model from a folder or hub, by default SmolLM2-135M-Instruct.

        Args:
            name_or_path: A folder or a hub name; None: `$PAGED_ENGINE_MODEL` or the default.
            dtype: "float32" gives the tokens of transformers' generate; "bfloat16" is faster
                where the processor has it; "auto" takes it exactly there.
            device: "cpu" or "cuda"; None: CUDA where there is one.
            scheduler, block_pool, attention, verbose: See the class.
            progress: Show a bar while the model is fetched for the first time.
            config: Fields of :class:`EngineConfig`.

        Raises:
            ModelNotFoundError: There is no such model, or it is damaged.
        """
        from paged_engine.models.loading import load_for_engine

        checked = EngineConfig.from_options(**config)
        model, tokenizer = load_for_engine(
            name_or_path, dtype=dtype, device=device, attention=attention, progress=progress
        )
        return cls(
            model,
            tokenizer,
            checked,
            scheduler=scheduler,
            block_pool=block_pool,
            attention=attention,
            verbose=verbose,
            owns_model=True,
        )

    # ------------------------------------------------------------------ requests

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to compute or to hand out."""
        return bool(self.core.samples or self.core.advanced or self._undelivered)

    @property
    def scheduler(self) -> SchedulerProtocol:
        return self.core.scheduler

    @property
    def pool(self) -> BlockPoolProtocol:
        return self.core.pool

    @property
    def log(self) -> EventLog:
        """The events so far.

        Raises:
            InvalidConfigError: The engine was told not to record any.
        """
        if self.core.recorder is None:
            raise InvalidConfigError("this engine records no events; set record_events=True")
        return self.core.recorder.log

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> str:
        """Put a request in line; it may join the batch in the next step.

        Args:
            prompt: Text, chat messages, or token ids.
            params: How to sample; None: greedy, up to 128 tokens.
            request_id: A name for it; None: one is made.
            priority: Lower is served first, under the policy "priority".

        Returns:
            Its id.

        Raises:
            InvalidRequestError: It could never be served; nothing was added.
        """
        return self._submit(self._intake.prepare(prompt, params, request_id, priority)).request_id

    def abort(self, request_id: str) -> None:
        """End a request at once; its last output comes with the next step.

        Raises:
            UnknownRequestError: There is no such unfinished request.
        """
        user = self._users.get(request_id)
        if user is None or user.is_finished:
            raise UnknownRequestError(
                f"no unfinished request {request_id!r}; it was never added or has ended"
            )
        with self.core.undivided():
            for sample in user.samples:
                if not sample.request.is_finished:
                    self.core.abort(sample)

    def step(self) -> list[RequestOutput]:
        """Compute one step.

        Returns:
            An output for each request that got tokens or ended.

        Raises:
            Exception: Whatever the model raised.  Requests and pool are as before the step,
                which can be tried again.
        """
        self._advance()
        outputs, self._undelivered = self._undelivered, []
        return outputs

    def generate(
        self,
        prompts: Any,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Serve prompts to the end, in one batch as far as the limits allow.

        Args:
            prompts: A text, chat messages or token ids, or a list of any of those.
            params: One for all, or one for each.
            progress: Show a bar.

        Returns:
            The final outputs, in the order of the prompts.  Outputs of other requests that
            advanced meanwhile come with the next `step`.

        Raises:
            InvalidRequestError: One could never be served; none was added.
        """
        prompts = as_list(prompts)
        each = one_each(params, len(prompts))
        users = [
            self._intake.prepare(prompt, one, None, 0)
            for prompt, one in zip(prompts, each, strict=True)
        ]
        inbox: list[RequestOutput] = []
        final: dict[str, RequestOutput] = {}
        bar = _progress_bar(len(users)) if progress else None
        try:
            for user in users:
                self._submit(user, inbox)
            while len(final) < len(users):
                self._advance()
                done = {output.request_id: output for output in inbox if output.finished}
                inbox.clear()
                final |= done
                if bar is not None:
                    bar.update(len(done))
        except BaseException:
            self._abandon(users)
            raise
        finally:
            if bar is not None:
                bar.close()
        return [final[user.request_id] for user in users]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Serve one prompt, yielding an output whenever it got tokens.

        Text that is new is in `completions[0].new_text`.  Closing the iterator aborts the
        request; a bad prompt raises here, before the first token.
        """
        outputs = self._stream(self._intake.prepare(prompt, params, None, 0))
        try:
            next(outputs)  # from here on, closing it aborts the request
        except BaseException:
            outputs.close()
            raise
        return outputs

    # ------------------------------------------------------------------ the running engine

    def set_limits(
        self, *, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None
    ) -> None:
        """Change the batch limits from the next step on.

        Raises:
            InvalidConfigError: A limit is below 1, or the scheduler's cannot be changed.
        """
        self.core.set_limits(max_num_seqs, max_num_batched_tokens)

    def resize_pool(self, num_usable: int) -> None:
        """Let requests use only so many of the pool's blocks, or more again.

        Requests are preempted as far as that is needed, in the next step; those that can never
        be served any more end at once, with the reason "ignored".

        Raises:
            InvalidConfigError: It is not between 1 and the size of the pool.
        """
        with self.core.undivided():
            self.core.resize(num_usable)

    def snapshot(self) -> EngineState:
        """The state of pool and unfinished requests now, as `replay` tells it from the log."""
        return self.core.snapshot()

    # ------------------------------------------------------------------ inner workings

    def _is_taken(self, name: str) -> bool:
        return name in self._users or name in self.core.samples

    def _submit(self, user: UserRequest, inbox: list[RequestOutput] | None = None) -> UserRequest:
        """Put it in line; with an inbox its outputs go there and not to who calls `step`."""
        user.inbox = inbox
        try:
            with self.core.undivided():
                for sample in user.samples:
                    self.core.add(sample)
                self._users[user.request_id] = user
        except BaseException:
            self._abandon([user])
            raise
        return user

    def _advance(self) -> None:
        """Compute a step, and sort its outputs into inboxes and those that `step` returns."""
        if self.core.samples:
            self.core.step()
        with self.core.undivided():
            self._undelivered = self._take_outputs()

    def _take_outputs(self) -> list[RequestOutput]:
        """What every request without an inbox yielded since it was last asked for."""
        advanced = dict.fromkeys(sample.user for sample in self.core.advanced)
        self.core.advanced.clear()
        outputs, self._undelivered = self._undelivered, []
        for user in advanced:
            (outputs if user.inbox is None else user.inbox).append(user.output())
            if user.is_finished:
                self._users.pop(user.request_id, None)
        return outputs

    def _abandon(self, users: Sequence[UserRequest]) -> None:
        """Abort what is left of a call that ends early; nobody waits for its outputs."""
        with self.core.undivided():
            for user in users:
                user.inbox = []
                for sample in user.samples:
                    if self.core.samples.get(sample.request.request_id) is sample:
                        self.core.abort(sample)
            self._undelivered = self._take_outputs()

    def _stream(self, user: UserRequest) -> Generator[RequestOutput, None, None]:
        inbox: list[RequestOutput] = []
        try:
            self._submit(user, inbox)
            yield user.output()  # `stream` takes it, so that `finally` is reached in any case
            while True:
                while inbox:
                    output = inbox.pop(0)
                    yield output
                    if output.finished:
                        return
                self._advance()
        finally:
            self._abandon([user])


def _pool_of(scheduler: Any, block_pool: BlockPoolProtocol | None) -> BlockPoolProtocol | None:
    """The pool that was given, or the one that a scheduler brings along."""
    brought: BlockPoolProtocol | None = None
    if not isinstance(scheduler, type):
        brought = getattr(scheduler, "pool", None)
    if block_pool is not None and brought is not None and block_pool is not brought:
        raise InvalidConfigError(
            "the scheduler has another pool than block_pool; give the same one, or only a scheduler"
        )
    return brought if block_pool is None else block_pool


def _progress_bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="requests", unit="request")
