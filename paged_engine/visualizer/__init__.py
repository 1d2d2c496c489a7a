"""What a run looks like: pictures and tables drawn from the event log, and a live view.

`EngineView` is imported when it is first used: it needs anywidget, the rest nothing but Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paged_engine.visualizer.lanes import state_at
from paged_engine.visualizer.static import Picture, batch_lanes_svg, block_map_svg, story_svg
from paged_engine.visualizer.table import EventTable, event_table

if TYPE_CHECKING:
    from paged_engine.visualizer.view import EngineView

__all__ = [
    "EngineView",
    "EventTable",
    "Picture",
    "batch_lanes_svg",
    "block_map_svg",
    "event_table",
    "state_at",
    "story_svg",
]


def __getattr__(name: str) -> Any:
    if name == "EngineView":
        from paged_engine.visualizer.view import EngineView

        return EngineView
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
