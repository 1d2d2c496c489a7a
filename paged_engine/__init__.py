"""A small LLM inference engine, written to be read.

Names are imported when they are first used, so that the rooms that know no torch
(`paged_engine.scheduler` and all below) work where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "BlockPool": "block_pool",
    "ContinuousEngine": "engine",
    "EngineConfig": "config",
    "EventLog": "events",
    "PagedEngineError": "errors",
    "Request": "request",
    "RequestOutput": "request",
    "RequestStatus": "request",
    "SamplingParams": "request",
    "Scheduler": "scheduler",
    "SchedulerOutput": "protocols",
}
__all__ = [
    "BlockPool",
    "ContinuousEngine",
    "EngineConfig",
    "EventLog",
    "PagedEngineError",
    "Request",
    "RequestOutput",
    "RequestStatus",
    "SamplingParams",
    "Scheduler",
    "SchedulerOutput",
]

if TYPE_CHECKING:
    from paged_engine.block_pool import BlockPool
    from paged_engine.config import EngineConfig
    from paged_engine.engine import ContinuousEngine
    from paged_engine.errors import PagedEngineError
    from paged_engine.events import EventLog
    from paged_engine.protocols import SchedulerOutput
    from paged_engine.request import Request, RequestOutput, RequestStatus, SamplingParams
    from paged_engine.scheduler import Scheduler


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
