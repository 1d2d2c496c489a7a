"""Every causal LM family of transformers: token for token, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from paged_engine.attention import reference_attention
from tests.models.families import PAGE, families, judge, load_table, page_of

KNOWN = {row["family"]: row for row in load_table()["families"]}
AS_WRITTEN = load_table()["transformers"] == transformers.__version__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_a_family_is_served_token_for_token_or_refused(family: str) -> None:
    """The table may only grow; with the version that it was written with it is exact."""
    verdict = judge(family)
    assert verdict.outcome != "wrong", verdict.reason
    known = KNOWN.get(family, {"outcome": "not built"})
    if known["outcome"] == "identical":
        assert verdict.outcome == "identical", verdict.reason
    if AS_WRITTEN:
        assert (verdict.outcome, verdict.reason) == (known["outcome"], known["reason"]), (
            "write the table anew: python -m tests.models.families --write"
        )


def test_the_table_has_every_family_and_the_page_is_made_from_it() -> None:
    outcomes = [row["outcome"] for row in KNOWN.values()]
    assert outcomes.count("identical") >= 90
    assert "wrong" not in outcomes
    if AS_WRITTEN:
        assert list(KNOWN) == families()
    assert PAGE.read_text(encoding="utf-8") == page_of(load_table()), (
        "write the page anew: python -m tests.models.families --write"
    )


def without(name: str, value: Any) -> Any:
    """Attention that takes `value` for what the model asked for."""

    def attend(*args: Any, **options: Any) -> torch.Tensor:
        assert options[name] is not None, f"nothing to break: {name} is not used"
        return reference_attention(*args, **options | {name: value})

    return attend


FAULTS = {
    "the window ignored": ("mistral", "window", None),
    "the sinks dropped": ("gpt_oss", "sinks", None),
    "the scale lost": ("granite", "scale", 16**-0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_walk_sees_what_is_broken_on_purpose(fault: str) -> None:
    family, name, value = FAULTS[fault]
    assert judge(family, attention=reference_attention).outcome == "identical"
    broken = judge(family, attention=without(name, value), probe=False)
    assert broken.outcome == "wrong"
    assert judge(family, attention=without(name, value)).outcome == "refused"
