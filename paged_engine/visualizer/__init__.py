"""What a run looks like: pictures and tables drawn from the event log alone."""

from __future__ import annotations

from paged_engine.visualizer.lanes import state_at
from paged_engine.visualizer.static import Picture, batch_lanes_svg, block_map_svg, story_svg
from paged_engine.visualizer.table import EventTable, event_table

__all__ = [
    "EventTable",
    "Picture",
    "batch_lanes_svg",
    "block_map_svg",
    "event_table",
    "state_at",
    "story_svg",
]
