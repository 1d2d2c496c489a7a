"""What is said at the end of a run of many tests as one: faults noticed, tokens compared."""

from __future__ import annotations

from typing import Any

import pytest


def mutation_lines(reporter: pytest.TerminalReporter) -> list[str]:
    """How many of the planted faults were noticed."""
    found: dict[str, int] = {"planted": 0, "killed": 0, "equivalent": 0}
    for name, value in _properties(reporter, "call"):
        if name.startswith("mutations "):
            found[name.removeprefix("mutations ")] += value
    if not found["planted"]:
        return []
    killed, planted, equivalent = (found[name] for name in ("killed", "planted", "equivalent"))
    return [f"mutations killed {killed} of {planted}, {equivalent} equivalent"]


def parity_lines(reporter: pytest.TerminalReporter) -> list[str]:
    """How many tokens were compared, and what was let pass as a near tie."""
    found = _properties(reporter, "teardown")
    tokens = sum(value for key, value in found if key == "parity_tokens")
    if not tokens:
        return []
    ties = [value for key, value in found if key == "parity_near_tie"]
    name, error = max((v for key, v in found if key == "parity_error"), key=lambda v: v[1])
    return [
        f"parity: {tokens} tokens held against transformers, {len(ties)} let pass as near ties; "
        f"largest logit error {error:.2g} ({name})",
        *[f"  near tie: {tie}" for tie in ties],
    ]


def _properties(reporter: pytest.TerminalReporter, when: str) -> list[tuple[str, Any]]:
    reports = [report for some in reporter.stats.values() for report in some]
    return [p for r in reports if getattr(r, "when", None) == when for p in r.user_properties]
