"""What `verbose=True` prints, to the letter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from tests.helpers.fakes import OracleModel, VirtualClock


class TimedModel(OracleModel):
    """Every forward pass takes 12.5 ms."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        self.clock.now += 0.0125
        return super().forward(batch, cache)


def verbose_engine(**options: Any) -> tuple[ContinuousEngine, TimedModel]:
    clock = VirtualClock()
    model = TimedModel(clock)
    config = EngineConfig(**{"block_size": 4, "num_blocks": 8, **options})
    return ContinuousEngine(model, config=config, verbose=True, clock=clock), model


def tokens(number: int, n: int = 1) -> SamplingParams:
    return SamplingParams(max_tokens=number, n=n)


def test_a_run_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    engine, _ = verbose_engine()
    engine.generate([[1, 2, 3, 4, 5], [6, 7, 8]], tokens(3))
    assert capsys.readouterr().out.splitlines() == [
        "[Alloc] request-0: blocks 0 1",
        "[Alloc] request-1: blocks 2",
        "[Prefill] batch of 2, 8 tokens, 12.5 ms",
        "[Step 1] 8 tokens, 0 decoding, 12.5 ms",
        "[Step 2] 2 tokens, 2 decoding, 12.5 ms",
        "[Alloc] request-1: blocks 3",
        "[Free] request-0: blocks 0 1",
        "[Finish] request-0: length",
        "[Free] request-1: blocks 2 3",
        "[Finish] request-1: length",
        "[Step 3] 2 tokens, 2 decoding, 12.5 ms",
    ]


def test_hits_copies_and_aborts(capsys: pytest.CaptureFixture[str]) -> None:
    engine, _ = verbose_engine()
    engine.add_request([1, 2, 3, 4, 5, 6], tokens(2, n=2), request_id="a")
    engine.step()
    engine.step()
    engine.abort("a")
    out = capsys.readouterr().out
    assert "[Hit] a#1: blocks 0\n" in out
    assert "[Copy] block 1 to 2\n" in out
    assert "[Free] a#1: blocks 0 2\n[Abort] a#1\n" in out


def test_preemptions(capsys: pytest.CaptureFixture[str]) -> None:
    engine, _ = verbose_engine(num_blocks=4)
    engine.generate([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]], tokens(9))
    assert "[Free] request-1: blocks 2 3\n[Preempt] request-1\n" in capsys.readouterr().out


def test_failed_steps(capsys: pytest.CaptureFixture[str]) -> None:
    engine, model = verbose_engine()
    model.fail_at = {1}
    engine.add_request([1, 2], tokens(1), request_id="a")
    with pytest.raises(RuntimeError):
        engine.step()
    assert capsys.readouterr().out.splitlines() == [
        "[Alloc] a: blocks 0",
        "[Free] a: blocks 0",
        "[Step 1] failed and was rolled back after 12.5 ms",
    ]


@pytest.mark.parametrize("record", [True, False])
def test_verbose_works_with_and_without_a_log(
    record: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = verbose_engine(record_events=record)
    engine.generate([1, 2], tokens(1))
    assert "[Step 1] 2 tokens" in capsys.readouterr().out


def test_an_engine_that_is_not_verbose_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ContinuousEngine(OracleModel(), config=EngineConfig(num_blocks=4)).generate([1], tokens(3))
    assert capsys.readouterr() == ("", "")
