"""What `bench --scaling` measures, from the options that it was given.  No torch is needed."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError

SERIES = ("batch", "context", "block-size", "waiting")
ROUNDS = 3

WARM_UP = 2  # decode steps that do not count
STEPS = 12  # and that do, a round
ROOM = WARM_UP + STEPS + 4  # tokens behind a prompt

MOST_AT_ONCE = 64
SHORTEST, LONGEST = 64, 4096  # tokens of context
BLOCK_SIZES = (4, 8, 16, 32, 64, 128)
WAITING = (0, 100, 1_000, 10_000, 100_000)

# What stays the same in a series.
CONTEXT_OF_BATCHES = 256
BATCH_OF_CONTEXTS = 8
BATCH_OF_BLOCK_SIZES = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """The points of each series; an empty series is not measured.

    Attributes:
        batches: Requests that decode together, each with `batch_context` tokens in the cache.
        contexts: Tokens in the cache, of each of `context_batch` requests; and the lengths of the
            prompts that are computed alone.
        block_sizes: Tokens a block, with `block_batch` requests of `batch_context` tokens.
        waiting: Requests that wait while a step is decided.
        left_out: What cannot be measured here, in words.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    block_sizes: tuple[int, ...]
    waiting: tuple[int, ...]
    batch_context: int
    context_batch: int
    block_batch: int
    left_out: tuple[str, ...] = ()

    @property
    def needs_model(self) -> bool:
        return bool(self.batches or self.contexts or self.block_sizes)

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of context that each request has at most, in batches and contexts together."""
        most, longest = max(self.batches, default=0), max(self.contexts, default=0)
        lengths = [longest] * (self.context_batch if self.contexts else 0)
        lengths += [0] * (most - len(lengths))
        return [
            max(length, self.batch_context) if place < most else length
            for place, length in enumerate(lengths)
        ]

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that lie in all caches together, at most."""
        rest = max(self.contexts, default=0)  # of the prompt that is computed alone
        rest += len(self.block_sizes) * self.block_batch * (self.batch_context + ROOM)
        return sum(length + ROOM for length in self.prompt_lengths) + rest

    def within(self, num_kv_tokens: int) -> Plan:
        """The plan without the longest contexts, as far as the caches would be too large.

        Raises:
            InvalidConfigError: Even the shortest would be.
        """
        plan = self
        while plan.num_kv_tokens > num_kv_tokens and len(plan.contexts) > 1:
            *shorter, longest = plan.contexts
            why = f"a context of {longest}: there is no memory for its keys and values"
            plan = replace(plan, contexts=tuple(shorter), left_out=(*plan.left_out, why))
        if plan.num_kv_tokens > num_kv_tokens:
            raise InvalidConfigError(
                f"the requests have {plan.num_kv_tokens} tokens in the cache, and there is memory "
                f"for {num_kv_tokens}; expected less: give a lower --concurrency"
            )
        return plan


def make_plan(options: argparse.Namespace, config: EngineConfig, model_len: int | None) -> Plan:
    """The plan.

    Args:
        options: Checked.  `concurrency` is the largest batch, `requests` the longest line.
        config: The engine's limits that were asked for.
        model_len: Positions that the model was made for; None: it is not known yet.

    Raises:
        InvalidConfigError: Not even the shortest context fits.
    """
    chosen = chosen_series(options)
    most = MOST_AT_ONCE if options.concurrency is None else config.max_num_seqs
    limits = [n for n in (config.max_model_len, model_len, LONGEST + ROOM) if n is not None]
    longest = min(limits) - ROOM
    if longest < SHORTEST:
        raise InvalidConfigError(
            f"a request may have {min(limits)} positions; with --scaling expected at least "
            f"{SHORTEST + ROOM}"
        )
    contexts = _doubling(SHORTEST, longest)
    line = WAITING[-1] if options.requests is None else options.requests
    left_out: tuple[str, ...] = ()
    if "context" in chosen and model_len is not None and contexts[-1] < LONGEST:
        left_out = (f"contexts above {contexts[-1]}: a request may have {min(limits)} positions",)
    return Plan(
        batches=_doubling(1, most) if "batch" in chosen else (),
        contexts=contexts if "context" in chosen else (),
        block_sizes=BLOCK_SIZES if "block-size" in chosen else (),
        waiting=tuple(n for n in WAITING if n <= line) if "waiting" in chosen else (),
        batch_context=min(CONTEXT_OF_BATCHES, contexts[-1]),
        context_batch=min(BATCH_OF_CONTEXTS, most),
        block_batch=min(BATCH_OF_BLOCK_SIZES, most),
        left_out=left_out,
    )


def chosen_series(options: argparse.Namespace) -> Sequence[str]:
    """The names in the list that `--scaling` was given, or all."""
    return SERIES if options.scaling == "all" else options.scaling.split(",")


def check_scaling(options: argparse.Namespace) -> None:
    """Find out whether the options go together; makes the folder for the figures.

    Raises:
        InvalidConfigError: They do not.
    """
    if options.scaling is None:
        if options.figures is not None:
            raise InvalidConfigError("--figures is for --scaling; give both or neither")
        return
    for name in ("peers", "compare", "rate", "clients", "figure", "num_blocks", "static_batch"):
        if getattr(options, name) is not None:
            raise InvalidConfigError(
                f"--scaling measures steps of the engine alone, with pools of its own, and "
                f"--{name.replace('_', '-')} is for serving a workload; give one of them"
            )
    names = chosen_series(options)
    if unknown := [name for name in names if name not in SERIES]:
        raise InvalidConfigError(
            f"--scaling has {unknown[0]!r}; expected some of {','.join(SERIES)}, or all"
        )
    if len(set(names)) < len(names):
        raise InvalidConfigError(f"--scaling is {options.scaling}; expected each name once")
    if options.figures is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidConfigError(
            "--figures needs matplotlib, which is not installed; install it (pip install "
            "matplotlib) or leave --figures out"
        )
    if not options.figures.absolute().parent.is_dir():
        raise InvalidConfigError(
            f"--figures is {options.figures}, and there is no folder {options.figures.parent}"
        )
    if options.figures.exists() and not options.figures.is_dir():
        raise InvalidConfigError(f"--figures is {options.figures}, a file; expected a folder")
    options.figures.mkdir(exist_ok=True)


def _doubling(first: int, last: int) -> tuple[int, ...]:
    values = [first]
    while 2 * values[-1] <= last:
        values.append(2 * values[-1])
    return tuple(values)
