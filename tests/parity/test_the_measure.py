"""The measure itself: it notices one wrong token or logit, and hides no near tie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from paged_engine import ContinuousEngine, EngineConfig, RequestOutput, SamplingParams
from paged_engine.models import tiny
from tests.helpers.parity import Observed, ParityError, Tally, Truth, assert_parity, prompt_of

PARAMS = SamplingParams(max_tokens=6)


@pytest.fixture
def served() -> tuple[Observed, Truth]:
    model = tiny()
    observed = Observed(ContinuousEngine(model, config=EngineConfig(num_blocks=8)))
    observed.engine.add_request(prompt_of(9, 1), PARAMS, request_id="r")
    observed.run()
    return observed, Truth(model)


def change(
    observed: Observed, change_tokens: Callable[[tuple[int, ...]], tuple[int, ...]], reason: str
) -> None:
    output: RequestOutput = observed.final["r"]
    first = output.completions[0]
    changed = replace(first, token_ids=change_tokens(first.token_ids), finish_reason=reason)
    observed.final["r"] = replace(output, completions=(changed,))


def test_what_is_right_is_counted(served: tuple[Observed, Truth]) -> None:
    observed, truth = served
    tally = assert_parity(observed, truth, {"r": PARAMS})
    assert (tally.num_tokens, tally.num_rows, tally.near_ties) == (6, 6, [])
    assert 0 < tally.max_error < 1e-4


def test_one_wrong_token_is_noticed(served: tuple[Observed, Truth]) -> None:
    observed, truth = served
    change(observed, lambda ids: (*ids[:5], (ids[5] + 1) % 256), "length")
    with pytest.raises(ParityError, match="r: token 5 is"):
        assert_parity(observed, truth, {"r": PARAMS})


def test_a_missing_token_is_noticed_unless_the_request_was_aborted(
    served: tuple[Observed, Truth],
) -> None:
    observed, truth = served
    change(observed, lambda ids: ids[:5], "length")
    with pytest.raises(ParityError, match="5 tokens, transformers 6"):
        assert_parity(observed, truth, {"r": PARAMS})
    change(observed, lambda ids: ids[:4], "abort")
    del observed.rows[5:]
    assert_parity(observed, truth, {"r": PARAMS})


def test_a_request_that_never_ended_is_noticed(served: tuple[Observed, Truth]) -> None:
    with pytest.raises(ParityError, match="another never ended"):
        assert_parity(*served, {"another": PARAMS})


def test_one_wrong_logit_is_noticed(served: tuple[Observed, Truth]) -> None:
    observed, truth = served
    observed.rows[3][2][17] += 2e-4
    with pytest.raises(ParityError, match="r: the logits at position 11 differ by 0.0002"):
        assert_parity(observed, truth, {"r": PARAMS})


def test_a_near_tie_passes_and_is_told(
    served: tuple[Observed, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    observed, truth = served
    change(observed, lambda ids: (*ids[:5], (ids[5] + 1) % 256), "length")
    monkeypatch.setattr(truth, "margin", lambda token_ids: 9e-5)
    tally = Tally()
    assert_parity(observed, truth, {"r": PARAMS}, tally)
    assert tally.near_ties == ["r, token 5: margin 9e-05"]
    monkeypatch.setattr(truth, "margin", lambda token_ids: 1e-4)
    with pytest.raises(ParityError):
        assert_parity(observed, truth, {"r": PARAMS})
