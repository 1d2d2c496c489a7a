"""Runs in which everything happens that a page can show."""

from __future__ import annotations

from typing import Any

import pytest

from paged_engine import ContinuousEngine
from paged_engine.replay import EngineState
from tests.engine.engine_helpers import greedy, oracle_engine
from tests.helpers.fakes import ByteTokenizer, OracleModel, VirtualClock

PROMPTS = ["the sky is blue", "once upon a time there was", "a block", "the sky is grey", "list:"]


def eventful(**options: Any) -> ContinuousEngine:
    """Chunks, hits, copies, preemption, evictions, a failed step, an abort, a resize, all ended."""
    model = OracleModel(vocab_size=256)
    clock = VirtualClock()
    settings = {"num_blocks": 24, "max_num_seqs": 4, "max_num_batched_tokens": 11} | options
    engine = oracle_engine(model, tokenizer=ByteTokenizer(), clock=clock, **settings)
    for i, prompt in enumerate(PROMPTS[:3]):
        engine.add_request(prompt, greedy(14 + 5 * i), request_id=f"early-{i}")
    model.fail_at = {4}
    for number in range(2000):
        clock.now += 0.01
        if number == 6:
            engine.add_request(PROMPTS[3], greedy(9, n=2), request_id="twins")
        if number == 8:
            engine.add_request(PROMPTS[4], greedy(30), request_id="gone")
        if number == 12:
            engine.resize_pool(13)
        if number == 16:
            engine.abort("gone")
        if number == 30:
            engine.resize_pool(24)
            engine.set_limits(max_num_seqs=2)
            engine.add_request(PROMPTS[0], greedy(6), request_id="late")
        if not engine.has_unfinished and number > 30:
            return engine
        if number == 3:
            with pytest.raises(RuntimeError):
                engine.step()
        else:
            engine.step()
    raise AssertionError("it never ends")


def plain(state: EngineState) -> dict[str, Any]:
    """As `History.plainAt` of web/state.js."""
    blocks = state.blocks
    hashes = [None if b.block_hash is None else f"{b.block_hash & 0xFFFFFFFF:08x}" for b in blocks]
    return {
        "blocks": [[b.ref_cnt, known] for b, known in zip(blocks, hashes, strict=True)],
        "usable": state.num_usable,
        "seqs": state.max_num_seqs,
        "budget": state.max_num_batched_tokens,
        "requests": {
            name: [r.status, [*r.output_token_ids], r.num_computed_tokens, [*r.block_table]]
            for name, r in state.requests.items()
        },
        "used": state.num_used,
        "shared": sum(b.ref_cnt > 1 for b in blocks),
        "cached": state.num_cached,
    }
