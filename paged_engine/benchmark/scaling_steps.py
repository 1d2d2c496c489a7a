"""Steps of the real engine, timed at a batch and a context of our choice.

The prompts are computed once, and lie in the prefix cache from then on: whoever asks for them again
decodes in the next step.  So many points and rounds cost little more than one.  Each request has
blocks of its own, which are read from memory as in any other run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from paged_engine.benchmark.scaling_plan import ROOM, STEPS, WARM_UP, Plan
from paged_engine.benchmark.workloads import Draw
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.models import ModelRunner
from paged_engine.request import Request, SamplingParams

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round at one point.

    Attributes:
        seconds: Of all the steps; of a decode step the median of several.
        steps: What was computed: one decode step, or all the chunks of a prompt.
        num_tokens: That came of it: one for each request, or those of the prompt.
    """

    seconds: float
    steps: tuple[tuple[tuple[int, int], ...], ...]
    num_tokens: int


class Decoder:
    """An engine in which any number of requests decode at any context.

    Args:
        runner: The model.
        config: The limits to start from; pool, batch and budget are chosen to fit.
        prompts: One a request.
        num_uses: How often requests will decode here, all together: room for what they write.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        prompts: Sequence[tuple[int, ...]],
        num_uses: int,
        clock: Clock = time.perf_counter,
    ) -> None:
        size = config.block_size
        num_blocks = sum(-(-len(prompt) // size) for prompt in prompts)
        self._engine = ContinuousEngine(
            runner,
            config=replace(
                config,
                num_blocks=num_blocks + num_uses * (-(-ROOM // size) + 1),
                kv_cache_memory=None,
                max_num_seqs=len(prompts),
                max_num_batched_tokens=max(config.max_num_batched_tokens, len(prompts)),
                max_model_len=max(map(len, prompts)) - 1 + ROOM,
                enable_prefix_caching=True,
            ),
        )
        self._prompts = prompts
        self._clock = clock
        for prompt in prompts:
            _add(self._engine, prompt, 1)
            self._finish()

    def decode(self, batch_size: int, context: int) -> Sample:
        """The first so many requests, each with about so many tokens in the cache."""
        for prompt in self._prompts[:batch_size]:
            _add(self._engine, prompt[: context + 1], WARM_UP + STEPS + 2)
        while not self._all_decode(batch_size):
            self._engine.step()
        for _ in range(WARM_UP):
            self._engine.step()
        seconds: list[float] = []
        steps: list[tuple[tuple[int, int], ...]] = []
        for _ in range(STEPS):
            steps.append(tuple((r.num_computed_tokens, 1) for r in self._running))
            began = self._clock()
            self._engine.step()
            seconds.append(self._clock() - began)
        self._finish()
        return Sample(median(seconds), (steps[STEPS // 2],), batch_size)

    @property
    def _running(self) -> list[Request]:
        scheduler: Any = self._engine.scheduler
        running: list[Request] = scheduler.running
        return running

    def _all_decode(self, batch_size: int) -> bool:
        behind = [r.num_tokens - r.num_computed_tokens for r in self._running]
        return behind == [1] * batch_size and all(r.num_output_tokens for r in self._running)

    def _finish(self) -> None:
        while self._engine.has_unfinished:
            self._engine.step()


class Prefiller:
    """An engine that computes one prompt at a time, anew each time.

    Args:
        runner: The model.
        config: The limits; the budget is the size of a chunk.
        prompt: The longest.
        lengths: That will be asked for; each is tried first, as far as one chunk goes.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        prompt: tuple[int, ...],
        lengths: Sequence[int],
        clock: Clock = time.perf_counter,
    ) -> None:
        self._engine = ContinuousEngine(
            runner,
            config=replace(
                config,
                num_blocks=-(-len(prompt) // config.block_size) + 1,
                kv_cache_memory=None,
                max_num_seqs=1,
                max_model_len=len(prompt) + ROOM,
                enable_prefix_caching=False,
            ),
        )
        self._prompt = prompt
        self._clock = clock
        for length in {min(n, config.max_num_batched_tokens) for n in lengths}:
            self.prefill(length)

    def prefill(self, length: int) -> Sample:
        """From the first step to the first token."""
        _add(self._engine, self._prompt[:length], 1)
        scheduler: Any = self._engine.scheduler
        (request,) = scheduler.requests.values()
        starts: list[int] = []
        began = self._clock()
        while self._engine.has_unfinished:
            starts.append(request.num_computed_tokens)
            self._engine.step()
        seconds = self._clock() - began
        ends = [*starts[1:], length]
        chunks = tuple(((s, e - s),) for s, e in zip(starts, ends, strict=True))
        return Sample(seconds, chunks, length)


Measure = Callable[[], Sample]


def points(
    plan: Plan, runner: ModelRunner, config: EngineConfig, num_rounds: int
) -> Iterator[tuple[str, int, Measure]]:
    """Series, value and what measures it once; engines are made, and warm, when they are due."""
    draw = Draw(runner.vocab_size, 0)
    config = replace(config, probe=False)  # the model was probed already
    if lengths := plan.prompt_lengths:
        uses = num_rounds * (sum(plan.batches) + len(plan.contexts) * plan.context_batch)
        prompts = [draw.tokens(length + 1) for length in lengths]
        decoder = Decoder(runner, config, prompts, uses)
        for batch in plan.batches:
            yield "batch", batch, _later(decoder.decode, batch, plan.batch_context)
        for context in plan.contexts:
            yield "context", context, _later(decoder.decode, plan.context_batch, context)
    if plan.contexts:
        alone = Prefiller(runner, config, draw.tokens(plan.contexts[-1]), plan.contexts)
        for context in plan.contexts:
            yield "prefill", context, _later(alone.prefill, context)
    for size in plan.block_sizes:
        prompts = [draw.tokens(plan.batch_context + 1) for _ in range(plan.block_batch)]
        sized = replace(config, block_size=size)
        decoder = Decoder(runner, sized, prompts, num_rounds * plan.block_batch)
        yield "block-size", size, _later(decoder.decode, plan.block_batch, plan.batch_context)


def _later(measure: Callable[..., Sample], *arguments: int) -> Measure:
    return lambda: measure(*arguments)


def _add(engine: ContinuousEngine, prompt: tuple[int, ...], max_tokens: int) -> None:
    engine.add_request(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
