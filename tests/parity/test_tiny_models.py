"""Every family, backend, block size, budget, pool and crowd: the tokens of transformers.

The scenarios are chosen such that every possible pair of levels of two factors is served at
least once in each set; sets differ in which pairs meet.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from paged_engine.models import TINY_FAMILIES
from tests.helpers.parity import (
    LEVELS,
    Scenario,
    Tally,
    assert_parity,
    coverable_pairs,
    pairs_of,
    pairwise_scenarios,
    tiny_truth,
)

SETS = [pairwise_scenarios(seed) for seed in range(3)]


def _parameters() -> list[Any]:
    """Small crowds of the first set are quick; the rest is marked slow."""
    quick = [s for s in SETS[0] if s.concurrency <= 8 and s.budget > 1]
    slow = [s for s in itertools.chain(*SETS) if s not in quick]
    marked = [pytest.param(s, marks=pytest.mark.slow, id=str(s)) for s in dict.fromkeys(slow)]
    return [*(pytest.param(s, id=str(s)) for s in quick), *marked]


@pytest.mark.parametrize("scenario", _parameters())
def test_served_in_a_crowd_every_request_gets_the_tokens_it_gets_alone(
    scenario: Scenario, tally: Tally
) -> None:
    truth = tiny_truth(scenario.family)
    observed, asked = scenario.serve(scenario.engine(truth.model))
    scenario.assert_it_happened(observed)
    assert_parity(observed, truth, asked, tally)
    assert tally.num_tokens and tally.num_rows


@pytest.mark.parametrize("scenarios", SETS, ids=["first", "second", "third"])
def test_each_set_covers_every_family_and_every_possible_pair_of_levels(
    scenarios: list[Scenario],
) -> None:
    assert set(LEVELS["family"]) == set(TINY_FAMILIES)
    assert coverable_pairs() <= set().union(*(pairs_of(scenario) for scenario in scenarios))
    assert all(scenario.is_possible() for scenario in scenarios)
