"""Calls of kernels that are made again from a tape."""

from __future__ import annotations

import threading

import pytest
import torch

from paged_engine.kernels.library import NormCall, RopeCall, SiluCall, load_kernels
from tests.unit.test_layer_kernels import rope_call

EPSILON = 1e-5


def test_what_was_called_is_called_again_on_what_is_there_by_then() -> None:
    kernels = load_kernels()
    x, weight, normed, halved = (
        torch.ones(2, 8),
        torch.ones(8),
        torch.empty(2, 8),
        torch.empty(2, 4),
    )
    with kernels.record() as tape:
        kernels.add_and_norm(x, None, weight, EPSILON, normed)
        kernels.silu_and_multiply(normed, halved)  # of the new norm: order counts
    first = halved.clone()
    x.copy_(torch.linspace(-1, 1, 16).view(2, 8))
    assert tape.replay() == 0
    expected_norm, expected = torch.empty(2, 8), torch.empty(2, 4)
    kernels.add_and_norm(x.clone(), None, weight, EPSILON, expected_norm)
    kernels.silu_and_multiply(expected_norm, expected)
    assert torch.equal(halved, expected) and not torch.equal(halved, first)


def test_a_number_that_is_changed_holds_from_then_on() -> None:
    kernels = load_kernels()
    x, other, out = torch.ones(1, 8), torch.linspace(-1, 1, 8)[None], torch.empty(1, 8)
    with kernels.record() as tape:
        kernels.add_and_norm(x, None, torch.ones(8), EPSILON, out)
        kernels.silu_and_multiply(torch.ones(1, 8), torch.empty(1, 4))
    weight = torch.full((8,), 2.0)  # the first one is gone
    (call,) = tape.calls(NormCall)
    call.x, call.weight = other.data_ptr(), weight.data_ptr()
    assert len(tape.calls(SiluCall)) == 1
    tape.calls(SiluCall)[0].rows = 0  # its memory is gone, too
    for _ in range(2):
        out.zero_()
        tape.replay()
        torch.testing.assert_close(out, 2 * other / other.pow(2).mean().sqrt(), rtol=1e-4, atol=0)


def test_it_stops_at_the_call_that_fails_and_says_what_that_said() -> None:
    kernels = load_kernels()
    x, out = torch.ones(1, 8), torch.empty(1, 8)
    weight, slots = torch.ones(8), torch.tensor([2, 0])
    qkv, caches = torch.ones(2, 3 * 8), (torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 8))
    with kernels.record() as tape:
        kernels.rope_and_write(rope_call(qkv, caches, slots, None, None, 1), torch.float32)
        kernels.add_and_norm(x, None, weight, EPSILON, out)
    out.zero_()
    assert tape.replay() == 0 and out.any()
    foreign = torch.tensor([6, -1])
    tape.calls(RopeCall)[0].slots = foreign.data_ptr()
    out.zero_()
    assert tape.replay() == 2 and not out.any()


def test_only_what_this_thread_calls_meanwhile_is_on_it() -> None:
    kernels = load_kernels()
    x, weight, out = torch.ones(1, 8), torch.ones(8), torch.empty(1, 8)

    def call() -> None:
        kernels.add_and_norm(x, None, weight, EPSILON, out)

    call()
    with kernels.record() as tape:
        call()
        other = threading.Thread(target=call)
        other.start()
        other.join()
    call()
    assert len(tape.calls(NormCall)) == 1


def test_a_recording_ends_where_it_fails() -> None:
    kernels = load_kernels()
    with pytest.raises(ValueError, match="in between"), kernels.record():
        raise ValueError("in between")
    with kernels.record() as tape:
        pass
    assert tape.replay() == 0
