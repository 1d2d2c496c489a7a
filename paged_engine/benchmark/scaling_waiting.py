"""What a step of the scheduler costs while others wait: 0, or 100,000 of them.

There is no model and no engine: the scheduler decides, every request gets a token, one of them
ends, and the first in line takes its place.  A new one joins the line for each that left it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.request import Request, SamplingParams
from paged_engine.scheduler import Scheduler

BATCH = 32
LIFE = 32  # tokens that each request gets, so that one ends in every step
PROMPT = 16
STEPS = 200
TOKEN = 7  # that everybody gets
VOCAB = 1000


class Line:
    """A scheduler with a full batch, and so many behind it in every step.

    Args:
        num_waiting: Requests that still wait when the step has chosen.
        clock: Gives the time that this thread has computed, in seconds.
    """

    def __init__(self, num_waiting: int, *, clock: Callable[[], float] = time.thread_time) -> None:
        config = EngineConfig(max_num_seqs=BATCH, num_blocks=2 * BATCH * (PROMPT + LIFE) // 16)
        assert config.num_blocks is not None
        self.scheduler = Scheduler(config, BlockPool(config.num_blocks, config.block_size))
        self._clock = clock
        self._num_sent = 0
        for i in range(BATCH):
            self._send(1 + i % LIFE)  # they end one after the other
        for _ in range(num_waiting):
            self._send(LIFE)
        for _ in range(LIFE):  # until all that run have lived through it whole
            self.step()

    def measure(self) -> float:
        """Median seconds of a step, over `STEPS` of them."""
        return median(self.step() for _ in range(STEPS))

    def step(self) -> float:
        """One step, and the seconds that the scheduler took."""
        began = self._clock()
        output = self.scheduler.schedule()
        decided = self._clock() - began
        sampled = {request.request_id: TOKEN for request in output.scheduled}
        began = self._clock()
        finished = self.scheduler.update(output, sampled)
        seconds = decided + self._clock() - began
        for _ in finished:
            self._send(LIFE)
        return seconds

    def _send(self, max_tokens: int) -> None:
        number = self._num_sent
        self._num_sent += 1
        prompt = [number % VOCAB, number // VOCAB % VOCAB, *range(PROMPT - 2)]  # none is shared
        params = SamplingParams(max_tokens=max_tokens)
        self.scheduler.add(Request(str(number), prompt, params, max_tokens))
