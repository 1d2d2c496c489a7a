"""The measure of the engine: transformers' own code, each prompt alone, token for token.

`Truth` asks the model itself.  `Observed` keeps every row of logits that an engine computed.
`assert_parity` holds the two against each other.  `Scenario` is one way to serve a crowd.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from paged_engine import ContinuousEngine, EngineConfig, RequestOutput, SamplingParams
from paged_engine.batch import Batch
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models import tiny

TOLERANCE = 1e-4  # of a logit, absolute
MARGIN = 1e-4  # between the two most likely tokens; below it either is right


class ParityError(AssertionError):
    """The engine and transformers differ.  Not raised by the package, unlike AssertionError."""


@dataclass
class Tally:
    """What was compared, and what was let pass."""

    num_tokens: int = 0
    num_rows: int = 0
    max_error: float = 0.0
    near_ties: list[str] = field(default_factory=list)


class Truth:
    """What transformers says, with the attention implementation that the model came with."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._greedy: dict[tuple[int, ...], list[int]] = {}
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The ids that `model.generate` adds to `prompt`."""
        known = self._greedy.get(tuple(prompt))
        if known is None or (len(known) < max_tokens and not self._ended(known)):
            known = self._greedy[tuple(prompt)] = generate(self.model, prompt, max_tokens)
        return known[:max_tokens]

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """`[T, vocab_size]`, of one forward pass over all of `token_ids`."""
        key = tuple(token_ids)
        if key not in self._logits:
            with torch.no_grad():
                output = self.model(input_ids=self._tensor(key), use_cache=False)
            self._logits[key] = output.logits[0].float()
        return self._logits[key]

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the likeliest token after `token_ids` is above the next."""
        first, second = self.logits(token_ids)[-1].topk(2).values.tolist()
        return float(first - second)

    def _ended(self, token_ids: list[int]) -> bool:
        eos = self.model.generation_config.eos_token_id
        return bool(token_ids) and token_ids[-1] in ([eos] if isinstance(eos, int) else eos or ())

    def _tensor(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(token_ids)], device=self.model.device)


def generate(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Greedy, with transformers' `generate`."""
    input_ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_tokens,
        do_sample=False,
    )
    return output[0, len(prompt) :].tolist()


@cache
def tiny_truth(family: str) -> Truth:
    """One model a family and what it says, for all tests of one process."""
    return Truth(tiny(family))


class Observed:
    """Keeps the logits that an engine computes: for each request, position and row.

    Args:
        engine: It must record events: they say which row is whose.
    """

    def __init__(self, engine: ContinuousEngine) -> None:
        self.engine = engine
        self.rows: list[tuple[str, int, torch.Tensor]] = []
        self.final: dict[str, RequestOutput] = {}
        self._compute = engine.core.runner.forward
        engine.core.runner.forward = self._forward  # type: ignore[method-assign]

    def _forward(self, batch: Batch, kv_cache: PagedKVCache) -> torch.Tensor:
        logits = self._compute(batch, kv_cache)
        scheduled = []
        for index in range(len(self.engine.log) - 1, -1, -1):
            event: Any = self.engine.log[index]
            if event.kind == "step_began":
                break
            if event.kind == "scheduled":
                scheduled.append((event.request_id, event.start + event.num_tokens - 1))
        assert len(scheduled) == len(logits)
        for (name, position), row in zip(reversed(scheduled), logits, strict=True):
            self.rows.append((name, position, row.float().clone()))
        return logits

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        self.final |= {output.request_id: output for output in outputs if output.finished}
        return outputs

    def run(self, between: Callable[[int], object] = lambda step: None) -> None:
        """Step to the end; `between` is called with the number of steps taken so far."""
        for number in itertools.count(1):
            if not self.engine.has_unfinished:
                break
            self.step()
            between(number)
            assert number < 20_000, "the engine does not come to an end"

    def count(self, kind: str) -> int:
        return len(self.engine.log.of_kind(kind))

    def logits_of(self, name: str) -> dict[int, list[torch.Tensor]]:
        """By position; a position that was computed again, after preemption, has several."""
        found: dict[int, list[torch.Tensor]] = {}
        for owner, position, row in self.rows:
            if owner == name:
                found.setdefault(position, []).append(row)
        return found


def assert_parity(
    observed: Observed,
    truth: Truth,
    params: Mapping[str, SamplingParams],
    tally: Tally | None = None,
    tolerance: float = TOLERANCE,
) -> Tally:
    """Every greedy request in `params` ended with the tokens and logits of transformers.

    One that was aborted must have the beginning of them.  Where the tokens differ although
    transformers' own top-2 margin is under `MARGIN`, that is noted in the tally and the rest of
    that request is compared by logits only.

    Raises:
        ParityError: With the first difference.
    """
    tally = Tally() if tally is None else tally
    for name, asked in params.items():
        output = observed.final.get(name)
        if output is None:
            raise ParityError(f"{name} never ended")
        prompt = output.prompt_token_ids
        wanted = truth.greedy(prompt, asked.max_tokens or 0)
        if len(output.completions) != asked.n:
            raise ParityError(f"{name} has {len(output.completions)} samples, not {asked.n}")
        for completion in output.completions:
            sample = name if asked.n == 1 else f"{name}#{completion.index}"
            _compare_tokens(sample, prompt, completion, wanted, truth, tally)
            whole = truth.logits([*prompt, *completion.token_ids])
            for position, rows in observed.logits_of(sample).items():
                for row in rows:
                    error = float((row - whole[position]).abs().max())
                    tally.max_error = max(tally.max_error, error)
                    tally.num_rows += 1
                    if not error <= tolerance:
                        raise ParityError(
                            f"{sample}: the logits at position {position} differ by {error:.3g}"
                        )
    return tally


def _compare_tokens(
    sample: str,
    prompt: Sequence[int],
    completion: Any,
    wanted: list[int],
    truth: Truth,
    tally: Tally,
) -> None:
    got = list(completion.token_ids)
    tally.num_tokens += len(got)
    if got == (wanted[: len(got)] if completion.finish_reason == "abort" else wanted):
        return
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(got, wanted, strict=False))
    place = sum(1 for _ in same)
    if place == min(len(got), len(wanted)):
        raise ParityError(f"{sample} has {len(got)} tokens, transformers {len(wanted)}")
    margin = truth.margin([*prompt, *wanted[:place]])
    if margin >= MARGIN:
        raise ParityError(
            f"{sample}: token {place} is {got[place]}, transformers' {wanted[place]}, which is "
            f"ahead by {margin:.3g}; all: {got} and {wanted}"
        )
    tally.near_ties.append(f"{sample}, token {place}: margin {margin:.2g}")


# ------------------------------------------------------------------ ways to serve a crowd


def prompt_of(length: int, seed: int, vocab_size: int = 256) -> list[int]:
    """Tokens that mean nothing, the same for the same seed; special ones left out."""
    return random.Random(1000 * seed + length).choices(range(3, vocab_size), k=length)


@dataclass(frozen=True)
class Scenario:
    """One way to serve a crowd.  `NAME in LEVELS` says what each may be."""

    family: str
    attention: str  # "fused": the engine's choice, which fuses Llama-like models
    block_size: int
    budget: int
    pool: str  # "ample", or "tight": so small that requests are preempted
    prefix_caching: bool
    n: int
    concurrency: int
    arrival: str  # "together", or "staggered": one at each step of the running batch
    aborts: bool

    max_tokens = 12

    def __str__(self) -> str:
        words = [self.family, self.attention, f"block{self.block_size}", f"budget{self.budget}"]
        words += [self.pool, "cached" if self.prefix_caching else "uncached", f"n{self.n}"]
        words += [f"x{self.concurrency}", self.arrival]
        return "-".join([*words, "aborts"] if self.aborts else words)

    def is_possible(self) -> bool:
        """Whether what it promises (preemptions, copies, aborts) can happen at all."""
        if self.pool == "tight" and (self.budget < 7 or self.concurrency < 4):
            return False
        if self.pool == "tight" and self.block_size == 64 and self.budget < 512:
            return False  # long prompts in small chunks: one ends before the next begins
        if self.pool == "tight" and self.budget < 33 and self.concurrency < 8:
            return False  # in small chunks a few may come and go one by one
        few_at_once = self.aborts or self.arrival == "staggered"
        if self.pool == "tight" and self.concurrency < 8 and few_at_once:
            return False  # they may not get in each other's way
        if self.n > 1 and self.budget < 2:  # the first sample ends before the next begins
            return False
        if self.budget < 7 and self.concurrency > 8:  # only long
            return False
        return self.concurrency >= 4 or not self.aborts

    def prompts(self) -> list[list[int]]:
        """Twelve different ones, then again; in a tight pool each grows into one more block."""
        size = self.block_size
        if self.pool == "tight" and size >= 16:
            whole = 2 * size if self.prefix_caching or size == 16 else size
            lengths = [whole - 1 - i % 4 for i in range(self.concurrency)]
        else:
            choice = (9, 17, 1, 24, 2, 12, 31, 16, 5, 13, 3, 40)
            lengths = [choice[i % 12] for i in range(self.concurrency)]
            if self.prefix_caching:  # long enough to share a block, and not all alike
                lengths = [length + (size if i % 4 != 2 else 0) for i, length in enumerate(lengths)]
        shared = prompt_of(2 * size if size < 16 else size, 77) if self.prefix_caching else []
        prompts = []
        for i, length in enumerate(lengths):
            own = prompt_of(length, i % 12)
            prompts.append([*shared, *own[len(shared) :]] if length > len(shared) else own)
        return prompts

    def num_blocks(self) -> int:
        lengths = [len(prompt) for prompt in self.prompts()]
        at_end = -(-(max(lengths) + self.max_tokens - 1) // self.block_size)
        if self.pool == "ample":
            return min(32, self.concurrency * self.n) * (at_end + 1)
        at_start = -(-(max(lengths) + 1) // self.block_size)
        return max(at_end, 2 * at_start) + (1 if self.block_size < 16 else 0)

    def engine(self, model: PreTrainedModel, **options: Any) -> ContinuousEngine:
        attention = options.pop("attention", self.attention)
        attention = None if attention == "fused" else attention
        config = EngineConfig(
            block_size=self.block_size,
            num_blocks=self.num_blocks(),
            max_num_batched_tokens=self.budget,
            enable_prefix_caching=self.prefix_caching,
            **options,
        )
        return ContinuousEngine(model, config=config, attention=attention)

    def serve(self, engine: ContinuousEngine) -> tuple[Observed, dict[str, SamplingParams]]:
        """All requests to the end, checking the parts against each other meanwhile."""
        observed = Observed(engine)
        asked: dict[str, SamplingParams] = {}
        line = [(f"r{i}", prompt) for i, prompt in enumerate(self.prompts())]

        def add() -> None:
            name, prompt = line.pop(0)
            # in a tight pool nobody may end before it has grown
            short = self.pool == "ample" and int(name[1:]) % 3 == 1
            asked[name] = SamplingParams(max_tokens=7 if short else self.max_tokens, n=self.n)
            engine.add_request(prompt, asked[name], request_id=name)

        while line and (self.arrival == "together" or len(asked) < 2):
            add()

        def between(step: int) -> None:
            if line:
                add()
            if self.aborts and step % 3 == 0:
                place = step // 3 * 5 % self.concurrency
                name = f"r{place}"
                if place % 2 and name in asked and name not in observed.final:
                    engine.abort(name)
            if step % 16 == 0:
                engine.scheduler.check_invariants()  # type: ignore[attr-defined]

        observed.run(between)
        if self.prefix_caching:  # and two of them once more, whose prompts are known by now
            for again, i in enumerate((len(asked) - 2, len(asked) - 1)):
                if i >= 0:
                    name, prompt = f"again{again}", self.prompts()[i]
                    asked[name] = SamplingParams(max_tokens=self.max_tokens, n=self.n)
                    engine.add_request(prompt, asked[name], request_id=name)
            observed.run()
        engine.scheduler.check_invariants()  # type: ignore[attr-defined]
        assert engine.pool.num_free == engine.config.num_blocks, "blocks were lost"
        return observed, asked

    def assert_it_happened(self, observed: Observed) -> None:
        """What the scenario is there for really took place."""
        if self.pool == "tight":
            assert observed.count("preempted") > 0, "nobody was preempted"
        if self.prefix_caching:
            assert observed.count("hit") > 0, "no block was shared"
        else:
            assert observed.count("cached") == 0
        may_be_full = self.pool == "tight" and self.block_size == 64
        if self.n > 1 and self.block_size > 1 and not may_be_full:
            assert observed.count("copied") > 0, "nothing was copied"
        if self.aborts:
            assert observed.count("aborted") > 0, "nobody was aborted"
        if self.budget < 9:
            starts = [event.start for event in observed.engine.log.of_kind("scheduled")]
            assert any(starts), "no prompt was computed in chunks"


LEVELS: dict[str, tuple[Any, ...]] = {
    "family": (
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "smollm3",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "opt",
        "phi3",
    ),
    "attention": ("fused", "cpu", "sdpa", "reference"),
    "block_size": (1, 3, 16, 64),
    "budget": (1, 2, 7, 33, 512),
    "pool": ("ample", "tight"),
    "prefix_caching": (True, False),
    "n": (1, 3),
    "concurrency": (1, 4, 8, 32),
    "arrival": ("together", "staggered"),
    "aborts": (False, True),
}


def pairwise_scenarios(seed: int = 0) -> list[Scenario]:
    """Few scenarios in which every possible pair of levels of two factors occurs.

    Greedy: of some random scenarios the one with most new pairs is taken, again and again.
    """
    draw = random.Random(seed)
    open_pairs = set(coverable_pairs())
    chosen: list[Scenario] = []
    while open_pairs:
        (a, value_a), (b, value_b) = min(open_pairs, key=repr)
        candidates = []
        while len(candidates) < 40:
            values = {name: draw.choice(levels) for name, levels in LEVELS.items()}
            scenario = Scenario(**values | {a: value_a, b: value_b})
            if scenario.is_possible():
                candidates.append(scenario)
        best = max(candidates, key=lambda s: len(pairs_of(s) & open_pairs))
        open_pairs -= pairs_of(best)
        chosen.append(best)
    return chosen


def pairs_of(scenario: Scenario) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations([(name, getattr(scenario, name)) for name in LEVELS], 2))


@cache
def coverable_pairs() -> frozenset[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Pairs of levels that occur together in some possible scenario."""
    names = [name for name in LEVELS if name not in ("family", "attention", "block_size")]
    possible: set[tuple[tuple[str, Any], tuple[str, Any]]] = set()
    for values in itertools.product(*(LEVELS[name] for name in names)):
        scenario = Scenario("llama", "sdpa", 16, **dict(zip(names, values, strict=True)))
        if scenario.is_possible():
            possible |= {p for p in pairs_of(scenario) if p[0][0] in names and p[1][0] in names}
    # family, attention and block size forbid nothing
    for name in ("family", "attention", "block_size"):
        for other in LEVELS:
            if other != name:
                possible |= _in_order(name, other)
    return frozenset(possible)


def _in_order(name: str, other: str) -> Iterable[tuple[tuple[str, Any], tuple[str, Any]]]:
    order = list(LEVELS)
    first, second = sorted((name, other), key=order.index)
    return {((first, a), (second, b)) for a, b in itertools.product(LEVELS[first], LEVELS[second])}
