"""What only notebooks need: predictions, exercises and their checks, bug hunts, baselines."""

from __future__ import annotations

from paged_engine.lessons.adapters import own_request, without_blocks
from paged_engine.lessons.baselines import (
    BaselineRun,
    cached_generate,
    naive_generate,
    static_generate,
)
from paged_engine.lessons.bring import bring
from paged_engine.lessons.bug_hunts import accuse, bug, suspects
from paged_engine.lessons.charts import best_of, chart
from paged_engine.lessons.exercises import check, results, yours
from paged_engine.lessons.growing import add_to_class, show_diff
from paged_engine.lessons.predictions import predict, predictions
from paged_engine.lessons.records import export_results
from paged_engine.lessons.sources import num_lines, side_by_side

__all__ = [
    "BaselineRun",
    "accuse",
    "add_to_class",
    "best_of",
    "bring",
    "bug",
    "cached_generate",
    "chart",
    "check",
    "export_results",
    "naive_generate",
    "num_lines",
    "own_request",
    "predict",
    "predictions",
    "results",
    "show_diff",
    "side_by_side",
    "static_generate",
    "suspects",
    "without_blocks",
    "yours",
]
