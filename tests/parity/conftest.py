"""Counts what is compared in all parity tests; `tests.helpers.summaries` prints it."""

from __future__ import annotations

from collections.abc import Iterator

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
