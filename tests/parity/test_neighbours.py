"""What a request computes does not depend on who its neighbours are or where its blocks lie."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import torch

from paged_engine import BlockPool, ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models import TINY_FAMILIES
from tests.helpers.parity import Observed, prompt_of, tiny_truth

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
MINE = prompt_of(19, 1)
BACKENDS = (None, "cpu", "sdpa", "reference")  # None: fused where it can be


def rows_of(observed: Observed, name: str) -> torch.Tensor:
    by_position = observed.logits_of(name)
    assert all(len(rows) == 1 for rows in by_position.values())
    return torch.stack([by_position[position][0] for position in sorted(by_position)])


def served(
    family: str, attention: str | None, neighbours: list[list[int]], pool: BlockPool | None = None
) -> Observed:
    config = EngineConfig(block_size=4, num_blocks=96)
    model = tiny_truth(family).model
    engine = ContinuousEngine(model, config=config, attention=attention, block_pool=pool)
    observed = Observed(engine)
    engine.add_request(MINE, PARAMS, request_id="mine")
    for prompt in neighbours:
        engine.add_request(prompt, PARAMS)
    observed.run()
    return observed


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_other_neighbours_of_the_same_lengths_leave_every_bit_as_it_was(
    family: str, attention: str | None
) -> None:
    lengths = (11, 19, 26)
    first = served(family, attention, [prompt_of(n, 2) for n in lengths])
    second = served(family, attention, [prompt_of(n, 3) for n in lengths])
    assert torch.equal(rows_of(first, "mine"), rows_of(second, "mine"))
    assert first.final["mine"].token_ids == second.final["mine"].token_ids


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_neighbours_of_other_lengths_change_no_more_than_rounding(family: str) -> None:
    alone = rows_of(served(family, "sdpa", []), "mine")
    crowd = [prompt_of(n, 4) for n in (1, 3, 40, 19, 8)]
    torch.testing.assert_close(
        rows_of(served(family, "sdpa", crowd), "mine"), alone, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_where_the_blocks_lie_makes_no_difference_to_any_bit(
    family: str, attention: str | None
) -> None:
    neighbours = [prompt_of(n, 5) for n in (9, 27)]
    in_order = served(family, attention, neighbours)
    pool = BlockPool(96, 4)
    shuffled = list(range(96))
    random.Random(6).shuffle(shuffled)
    pool._free = OrderedDict.fromkeys(shuffled)
    elsewhere = served(family, attention, neighbours, pool)
    tables = [o.engine.log.of_kind("allocated")[0].block_ids for o in (in_order, elsewhere)]
    assert tables[0] != tables[1]
    assert torch.equal(rows_of(in_order, "mine"), rows_of(elsewhere, "mine"))


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_what_others_left_in_recycled_blocks_makes_no_difference_to_any_bit(
    family: str, attention: str | None
) -> None:
    """Every slot that is not this request's own holds a large number."""
    clean = served(family, attention, [])
    model = tiny_truth(family).model
    config = EngineConfig(block_size=4, num_blocks=96)
    engine = ContinuousEngine(model, config=config, attention=attention)
    engine.core.cache.k.fill_(1e4)
    engine.core.cache.v.fill_(-1e4)
    observed = Observed(engine)
    engine.add_request(MINE, PARAMS, request_id="mine")
    observed.run()
    assert torch.equal(rows_of(clean, "mine"), rows_of(observed, "mine"))
