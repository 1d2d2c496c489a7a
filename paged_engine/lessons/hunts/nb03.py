"""Notebook 03: short requests say something else when a long one sits beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paged_engine.lessons import baselines
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced


@contextmanager
def _sees_pads() -> Iterator[None]:
    right = baselines.padded

    def padded(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
        ids, mask = right(prompts)
        return ids, [[1] * len(row) for row in mask]

    with replaced(baselines, "padded", padded):
        yield


hunt(
    Hunt(
        "03",
        inject=_sees_pads,
        suspects={
            "A": "Rounding: another shape adds in another order, and a near tie falls over.",
            "B": "Rows are mixed up: a request reads keys and values of its neighbour.",
            "C": "Pads are visible: the mask lets a row attend to its own filling.",
            "D": "Positions count the pads, so a padded prompt begins late.",
        },
        guilty="C",
        reasons={
            "A": "Rounding is below 1e-4, and alone none of these requests has a choice that was "
            "won by less than ten times that.",
            "B": "Then it would matter what the neighbours say. Only how long the longest is "
            "matters: neighbours of the same lengths with other tokens change nothing.",
            "C": "It changes as soon as there is a pad, it depends on the number of pads and not "
            "on what the neighbours say, and the longest row, which has none, never changes.",
            "D": "That moves every token of a row by the same distance, and this model counts "
            "only distances: without positions each of its tokens was right.",
        },
        source="the same happens in transformers to whoever forgets the mask; it warns, "
        "https://huggingface.co/docs/transformers/troubleshooting"
        "#incorrect-output-when-padding-tokens-arent-masked",
    )
)
