"""Plots of a run with matplotlib: for a page of text, a talk, or a figure of your own.

    plot_blocks(engine.log)        who holds which block, when most are in use
    plot_lanes(engine.log)         who computes what in which step
    plot_metrics(engine.log)       tokens a second, batch, blocks, latencies

Each returns its figure, with what it shows in words as `figure.pe_alt`.  None of them touches
pyplot or your settings.  They need matplotlib; the rest of the visualizer does not.
"""

from __future__ import annotations

from paged_engine.visualizer.plots.blocks import plot_blocks
from paged_engine.visualizer.plots.lanes import plot_lanes
from paged_engine.visualizer.plots.looks import Plot, Theme
from paged_engine.visualizer.plots.metrics import plot_metrics

__all__ = ["Plot", "Theme", "plot_blocks", "plot_lanes", "plot_metrics"]
