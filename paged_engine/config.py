"""How an engine is set up: one frozen value, checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from paged_engine.errors import InvalidConfigError

Policy = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The limits that an engine works within.

    Args:
        block_size: Tokens a KV block holds.
        num_blocks: Blocks in the pool.  None: as many as `kv_cache_memory` pays for.
        kv_cache_memory: Bytes for keys and values together.  None: a share of what
            the device has free, and never more than `max_num_seqs` requests of
            `max_model_len` tokens could fill.
        max_num_seqs: The most requests in one batch.
        max_num_batched_tokens: The token budget of one step, for prefill and decode
            together.  A prompt longer than what is left of it is computed in chunks.
        max_model_len: The most tokens a request may have, prompt and output together.
            None: what the model was made for.
        enable_prefix_caching: Keep the blocks of finished requests and share them with
            requests that begin with the same tokens.
        policy: "fcfs" serves in order of arrival; "priority" by `priority`, lowest
            first, and by arrival among equals.
        seed: Where the seeds of requests that bring none come from.  None: the
            operating system.
        record_events: Keep an event log (`engine.log`).
        max_events: The most events that the log keeps; older ones are folded into
            the state it replays from.
        probe: Check at construction that this model, through this attention backend,
            computes packed prompts as it computes each alone.

    Raises:
        InvalidConfigError: A value is of the wrong type or out of range.
    """

    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_memory: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    max_model_len: int | None = None
    enable_prefix_caching: bool = True
    policy: Policy = "fcfs"
    seed: int | None = 0
    record_events: bool = True
    max_events: int = 1_000_000
    probe: bool = True

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_events"):
            _require_count(name, getattr(self, name))
        for name in ("num_blocks", "kv_cache_memory", "max_model_len"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        if self.num_blocks is not None and self.kv_cache_memory is not None:
            raise InvalidConfigError(
                "num_blocks and kv_cache_memory both fix the size of the pool; give one of them"
            )
        if self.policy not in ("fcfs", "priority"):
            raise InvalidConfigError(f"policy is {self.policy!r}; expected 'fcfs' or 'priority'")
        if self.seed is not None and type(self.seed) is not int:
            raise InvalidConfigError(f"seed is {self.seed!r}; expected an integer or None")

    @property
    def max_servable_tokens(self) -> int | None:
        """The most tokens one request can ever reach; None until pool and model are known.

        A pool of N slots serves N + 1 tokens, because the last token of a request is
        handed to the user and never needs a slot.
        """
        if self.num_blocks is None:
            return self.max_model_len
        by_pool = self.num_blocks * self.block_size + 1
        return by_pool if self.max_model_len is None else min(self.max_model_len, by_pool)

    def resolved(self, *, num_blocks: int, max_model_len: int) -> EngineConfig:
        """This configuration with what the model and the device decided filled in."""
        return replace(
            self, num_blocks=num_blocks, kv_cache_memory=None, max_model_len=max_model_len
        )

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Build from keyword arguments, naming the known options when one is unknown."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(options) - known):
            raise InvalidConfigError(
                f"unknown option {', '.join(unknown)}; expected one of {', '.join(sorted(known))}"
            )
        return cls(**options)


def _require_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidConfigError(f"{name} is {value!r}; expected a whole number of at least 1")
