"""Packing: which token, at which position, into which slot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine.batch import Batch, pack
from paged_engine.errors import InvariantError
from paged_engine.request import Request


def request_of(tokens: list[int], computed: int, table: list[int]) -> Request:
    request = Request("a", tokens)
    request.num_computed_tokens, request.block_table = computed, table
    return request


def test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other() -> None:
    prompt = request_of([10, 11, 12], 0, [5, 2])
    chunk = request_of([20, 21, 22, 23, 24, 25], 2, [1, 7, 0])
    decode = request_of([30, 31, 32], 2, [3, 4])
    batch = pack({prompt: 3, chunk: 2, decode: 1}, 2, "cpu")
    assert batch.input_ids.tolist() == [10, 11, 12, 22, 23, 32]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3, 2]
    assert batch.slot_mapping.tolist() == [10, 11, 4, 14, 15, 8]
    assert batch.query_starts == [0, 3, 5, 6]
    assert batch.query_lens == [3, 2, 1]
    assert batch.context_lens == [3, 4, 3]
    assert batch.last_indices.tolist() == [2, 4, 5]
    assert (batch.num_tokens, batch.num_seqs) == (6, 3)


def test_short_tables_are_filled_up_with_their_own_blocks() -> None:
    """A read that is masked away must not meet another sequence's NaN."""
    short, long = request_of([1], 0, [6]), request_of([1, 2, 3], 0, [4, 5, 3])
    batch = pack({short: 1, long: 3}, 1, "cpu")
    assert batch.block_tables.tolist() == [[6, 6, 6], [4, 5, 3]]


def test_everything_is_a_whole_number_of_64_bits() -> None:
    batch = pack({request_of([1, 2], 0, [0]): 2}, 2, "cpu")
    for name in ("input_ids", "positions", "slot_mapping", "block_tables", "last_indices"):
        assert getattr(batch, name).dtype == torch.int64


@pytest.mark.parametrize(("computed", "num_tokens"), [(0, 0), (0, -1), (0, 4), (2, 2)])
def test_a_request_is_scheduled_for_what_it_knows(computed: int, num_tokens: int) -> None:
    with pytest.raises(InvariantError, match=f"was scheduled for {num_tokens} tokens"):
        pack({request_of([1, 2, 3], computed, [0, 1]): num_tokens}, 2, "cpu")


def test_a_request_has_blocks_for_what_it_computes() -> None:
    with pytest.raises(InvariantError, match="needs slots for 3 tokens but its 1 blocks hold 2"):
        pack({request_of([1, 2, 3], 0, [0]): 3}, 2, "cpu")


def test_a_block_filled_to_its_last_slot_needs_no_next_one() -> None:
    batch = pack({request_of([1, 2, 3, 4], 3, [8, 9]): 1}, 2, "cpu")
    assert batch.slot_mapping.tolist() == [19]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[dict[Request, int], int]:
    block_size = draw(st.integers(1, 5))
    free = iter(draw(st.permutations(range(60))))
    scheduled = {}
    for _ in range(draw(st.integers(1, 4))):
        num_tokens = draw(st.integers(1, 12))
        computed = draw(st.integers(0, num_tokens - 1))
        end = draw(st.integers(computed + 1, num_tokens))
        table = [next(free) for _ in range(-(-end // block_size) + draw(st.integers(0, 1)))]
        request = request_of([draw(st.integers(0, 99)) for _ in range(num_tokens)], computed, table)
        scheduled[request] = end - computed
    return scheduled, block_size


@given(schedules())
def test_packing_equals_its_definition(case: tuple[dict[Request, int], int]) -> None:
    scheduled, block_size = case
    batch: Batch = pack(scheduled, block_size, "cpu")
    ids, positions, slots = [], [], []
    for request, num_tokens in scheduled.items():
        for position in range(
            request.num_computed_tokens, request.num_computed_tokens + num_tokens
        ):
            ids.append(request.token_ids[position])
            positions.append(position)
            block = request.block_table[position // block_size]
            slots.append(block * block_size + position % block_size)
    assert batch.input_ids.tolist() == ids
    assert batch.positions.tolist() == positions
    assert batch.slot_mapping.tolist() == slots
    assert len(set(slots)) == len(slots)
    assert batch.query_starts == np.cumsum([0, *scheduled.values()]).tolist()
    assert (batch.last_indices + 1).tolist() == batch.query_starts[1:]
    for row, request in zip(batch.block_tables.tolist(), scheduled, strict=True):
        assert row[: len(request.block_table)] == request.block_table
        assert set(row) == set(request.block_table)
