"""What a run looks like: pictures and tables drawn from the event log, and a live view.

`EngineView` needs anywidget and the plots matplotlib, so they are imported when they are first
used.  The rest needs nothing but Python.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paged_engine.visualizer.lanes import state_at
from paged_engine.visualizer.perfetto import export_perfetto
from paged_engine.visualizer.retelling import retell
from paged_engine.visualizer.static import Picture, batch_lanes_svg, block_map_svg, story_svg
from paged_engine.visualizer.table import EventTable, event_table

if TYPE_CHECKING:
    from paged_engine.visualizer.plots import plot_blocks, plot_lanes, plot_metrics
    from paged_engine.visualizer.view import EngineView

__all__ = [
    "EngineView",
    "EventTable",
    "Picture",
    "batch_lanes_svg",
    "block_map_svg",
    "event_table",
    "export_perfetto",
    "plot_blocks",
    "plot_lanes",
    "plot_metrics",
    "retell",
    "state_at",
    "story_svg",
]


_LATER = {
    "EngineView": "view",
    "plot_blocks": "plots",
    "plot_lanes": "plots",
    "plot_metrics": "plots",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
