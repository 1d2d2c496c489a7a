"""Counts what was compared in all parity tests and prints it, near ties above all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.parity import Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Give it to `assert_parity`; what it gathers is printed at the end of the run."""
    tally = Tally()
    yield tally
    name = request.node.name
    properties = request.node.user_properties  # these travel from the workers of pytest-xdist
    properties.append(("parity_tokens", tally.num_tokens))
    properties.append(("parity_error", [name, tally.max_error]))
    properties.extend(("parity_near_tie", f"{name}: {tie}") for tie in tally.near_ties)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for rs in terminalreporter.stats.values() for r in rs if hasattr(r, "when")]
    found = [p for r in reports if r.when == "teardown" for p in r.user_properties]
    tokens = sum(value for key, value in found if key == "parity_tokens")
    if not tokens:
        return
    ties = [value for key, value in found if key == "parity_near_tie"]
    name, error = max((v for key, v in found if key == "parity_error"), key=lambda v: v[1])
    terminalreporter.write_line(
        f"parity: {tokens} tokens held against transformers, {len(ties)} let pass as near ties; "
        f"largest logit error {error:.2g} ({name})"
    )
    for tie in ties:
        terminalreporter.write_line(f"  near tie: {tie}")
