"""What the engine's tests share: small engines, a model that says what it is told, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from paged_engine import ContinuousEngine, EngineConfig, RequestOutput, SamplingParams
from paged_engine.batch import Batch
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.replay import forget_finished, replay
from paged_engine.request import Request, RequestStatus
from paged_engine.scheduler import SchedulerOutput
from tests.helpers.fakes import OracleModel

PROMPTS = [[7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33, 34, 35, 36, 37, 38]]


def oracle_engine(model: OracleModel | None = None, **options: Any) -> ContinuousEngine:
    """An engine over the oracle: blocks of 4 tokens, 32 of them, unless told otherwise."""
    parts = {
        k: options.pop(k)
        for k in ("scheduler", "block_pool", "verbose", "clock", "tokenizer")
        if k in options
    }
    options = {"block_size": 4, "num_blocks": 32, **options}
    return ContinuousEngine(model or OracleModel(), config=EngineConfig(**options), **parts)


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **options)


def expected(prompt: Sequence[int], num_tokens: int, **model: Any) -> tuple[int, ...]:
    """What the oracle says after `prompt`, without an engine."""
    return tuple(OracleModel(**model).continuation(prompt, num_tokens))


def run(engine: ContinuousEngine, most_steps: int = 500) -> dict[str, RequestOutput]:
    """Step to the end; the final outputs, by id."""
    collected = Collected(from_the_start=False)
    for _ in range(most_steps):
        if not engine.has_unfinished:
            return collected.final
        collected.take(engine.step())
        check(engine)
    raise AssertionError(f"not done after {most_steps} steps")


class Collected:
    """Outputs of `step`, put together again from what each said was new."""

    def __init__(self, *, from_the_start: bool = True) -> None:
        self.from_the_start = from_the_start
        self.token_ids: dict[str, list[int]] = {}
        self.text: dict[str, str] = {}
        self.final: dict[str, RequestOutput] = {}

    def take(self, outputs: Iterable[RequestOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.final, "an output after the last one"
            for c in output.completions:
                name = (
                    output.request_id
                    if len(output.completions) == 1
                    else (f"{output.request_id}#{c.index}")
                )
                if name not in self.token_ids and not self.from_the_start:
                    self.token_ids[name] = list(
                        c.token_ids[: len(c.token_ids) - len(c.new_token_ids)]
                    )
                    self.text[name] = c.text[: len(c.text) - len(c.new_text)]
                ids = self.token_ids.setdefault(name, [])
                ids += c.new_token_ids
                assert tuple(ids) == c.token_ids, "new tokens were lost or told twice"
                self.text[name] = self.text.get(name, "") + c.new_text
                assert self.text[name] == c.text, "new text was lost or told twice"
            if output.finished:
                self.final[output.request_id] = output


def check(engine: ContinuousEngine) -> None:
    """The parts agree with each other, and the log tells their state."""
    scheduler: Any = engine.scheduler
    if hasattr(scheduler, "check_invariants"):
        scheduler.check_invariants()
        recorder = engine.core.recorder
        if recorder is not None:
            told = forget_finished(replay(engine.log, deepcopy(recorder.base)))
            assert told == engine.snapshot()


def assert_idle(engine: ContinuousEngine) -> None:
    """Nothing is being served, and every block is free."""
    assert not engine.has_unfinished
    assert not engine.core.samples
    assert not engine._users
    assert engine.pool.num_free == engine.config.num_blocks
    check(engine)


def assert_still_serves(engine: ContinuousEngine, prompt: Sequence[int] = (40, 41, 42)) -> None:
    """The engine gives a new request its tokens."""
    output = engine.generate(list(prompt), greedy(5))[0]
    assert output.token_ids == expected(prompt, 5, vocab_size=engine.core.runner.vocab_size)


class Bystanders:
    """Requests in flight that nothing which happens to others may touch."""

    def __init__(self, engine: ContinuousEngine, num_tokens: int = 12) -> None:
        self.engine = engine
        self.num_tokens = num_tokens
        self.collected = Collected()
        self.prompts = {engine.add_request(p, greedy(num_tokens)): p for p in PROMPTS}
        self.step()
        self.step()

    def step(self) -> list[RequestOutput]:
        """Take a step, keep what belongs to the bystanders, return the rest."""
        outputs = self.engine.step()
        self.collected.take([o for o in outputs if o.request_id in self.prompts])
        check(self.engine)
        return [o for o in outputs if o.request_id not in self.prompts]

    def finish(self) -> list[RequestOutput]:
        """Step to the end; each got exactly its tokens.  Returns the others' outputs."""
        others = []
        while self.engine.has_unfinished:
            others += self.step()
        vocab_size = self.engine.core.runner.vocab_size
        for name, prompt in self.prompts.items():
            output = self.collected.final[name]
            assert output.token_ids == expected(prompt, self.num_tokens, vocab_size=vocab_size)
            assert output.finish_reason == "length"
        assert_idle(self.engine)
        return others


class ScriptModel:
    """A `ModelRunner` that answers the prompt `[k]` with the bytes of `scripts[k]`."""

    def __init__(self, *scripts: str | bytes, eos: Sequence[int] = ()) -> None:
        self.scripts = [s.encode() if isinstance(s, str) else s for s in scripts]
        self.kv_shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=1)
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.vocab_size = 256
        self.max_model_len = 1000
        self.eos_token_ids = frozenset(eos)

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        kv = batch.input_ids[:, None, None].float()
        cache.write(0, kv, kv, batch.slot_mapping)
        logits = torch.zeros(batch.num_seqs, self.vocab_size)
        for s, context_len in enumerate(batch.context_lens):
            keys, _ = cache.gather(0, batch.block_tables[s], context_len)
            script = self.scripts[int(keys[0, 0, 0])]
            logits[s, script[(context_len - 1) % len(script)]] = 1.0
        return logits


class ToyPool:
    """A pool with no more than what is required."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, n: int) -> list[int] | None:
        if n > len(self._free):
            return None
        taken, self._free = self._free[:n], self._free[n:]
        return taken

    def free(self, block_ids: Sequence[int]) -> None:
        assert not set(block_ids) & set(self._free), "a double free"
        self._free += block_ids


class ToyScheduler:
    """A scheduler with no more than what is required; blocks for all tokens at admission."""

    def __init__(self, config: EngineConfig, pool: Any) -> None:
        self.pool = pool
        self.block_size = config.block_size
        self.most = config.max_num_seqs
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def abort(self, request_id: str) -> None:
        for line in (self.waiting, self.running):
            for request in line:
                if request.request_id == request_id:
                    line.remove(request)
                    self._release(request)
                    request.set_status(RequestStatus.FINISHED_ABORTED)
                    return
        raise KeyError(request_id)

    def schedule(self) -> SchedulerOutput:
        while self.waiting and len(self.running) < self.most:
            request = self.waiting[0]
            needed = -(-(request.num_tokens + request.max_tokens) // self.block_size)
            blocks = self.pool.allocate(needed)
            if blocks is None:
                break
            self.waiting.pop(0)
            request.block_table = blocks
            request.set_status(RequestStatus.RUNNING)
            self.running.append(request)
        return SchedulerOutput(
            scheduled={r: r.num_tokens - r.num_computed_tokens for r in self.running}
        )

    def update(self, output: SchedulerOutput, sampled: Mapping[str, int]) -> list[Request]:
        for request, num_tokens in output.scheduled.items():
            if not request.is_finished:
                request.num_computed_tokens += num_tokens
                request.append_token(sampled[request.request_id])
        finished = [r for r in self.running if r.is_finished]
        self.running = [r for r in self.running if not r.is_finished]
        for request in finished:
            self._release(request)
        return finished

    def _release(self, request: Request) -> None:
        self.pool.free(request.block_table)
        request.block_table = []


def warns_once(action: Callable[[], Any]) -> Any:
    """The result of `action`, which must warn that a listener was removed, once."""
    import pytest

    with pytest.warns(RuntimeWarning, match="gets no more events; the engine goes on") as caught:
        result = action()
    assert len(caught) == 1
    return result
