"""What the engine's replaceable parts promise each other.

A reader's own scheduler or pool needs these methods and no more; what else the package's parts
can do (sharing prefixes, resizing, rolling back) is used where it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paged_engine.request import Request, RequestStatus


class BlockPoolProtocol(Protocol):
    """What a scheduler needs of a pool.  Prefix sharing and resizing are optional."""

    @property
    def num_free(self) -> int: ...
    def allocate(self, n: int) -> list[int] | None: ...
    def free(self, block_ids: Sequence[int]) -> None: ...


class SchedulerProtocol(Protocol):
    """What the engine needs of a scheduler."""

    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def schedule(self) -> SchedulerOutput: ...
    def update(self, output: SchedulerOutput, sampled: Mapping[str, int]) -> list[Request]: ...


@dataclass(slots=True)
class SchedulerOutput:
    """What one step computes.

    Attributes:
        scheduled: For each request how many tokens, from its `num_computed_tokens` on.
        preempted: Requests that lost their blocks in this step.
        blocks_to_copy: Pairs (from, to) to copy before anything is computed.
    """

    scheduled: dict[Request, int] = field(default_factory=dict)
    preempted: list[Request] = field(default_factory=list)
    blocks_to_copy: list[tuple[int, int]] = field(default_factory=list)
    table_lengths: dict[Request, int] = field(default_factory=dict)  # before, for rollback
    admitted: dict[Request, RequestStatus] = field(default_factory=dict)  # and what it was

    @property
    def num_scheduled_tokens(self) -> int:
        return sum(self.scheduled.values())
