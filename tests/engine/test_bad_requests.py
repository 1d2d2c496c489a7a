"""What cannot be served is refused at once, with the reason, and harms nobody."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from paged_engine import SamplingParams
from paged_engine.errors import InvalidRequestError, UnknownRequestError
from tests.engine.engine_helpers import (
    PROMPTS,
    Bystanders,
    assert_still_serves,
    expected,
    greedy,
    oracle_engine,
    run,
)
from tests.helpers.fakes import ByteTokenizer, OracleModel

BAD_PROMPTS = {
    "empty text": ("", "the prompt is empty; expected at least one token"),
    "no ids": ([], "the prompt is empty; expected at least one token"),
    "an empty array": (np.array([], dtype=int), "the prompt is empty"),
    "too long for pool and model": ([1] * 129, "needs 130 tokens .*129 of prompt.*serve.*shorten"),
    "an id beyond the vocabulary": ([1, 50], "token id 50 is outside the vocabulary; expected 0"),
    "a negative id": ([-1], "token id -1 is outside the vocabulary; expected 0 to 49"),
    "None": (None, "the prompt is of type NoneType; expected text, token ids, chat messages"),
    "a number": (3.5, "of type float; expected text"),
    "an id alone": (5, "of type int; expected text"),
    "bytes": (b"abc", "of type bytes; expected text"),
    "a dict": ({"role": "user", "content": "x"}, "of type dict; expected text"),
    "a set": ({1, 2}, "of type set; expected text"),
    "a float among ids": ([1, 2.0], r"the prompt has 2.0 where a token id should be; expected"),
    "a bool among ids": ([1, True], "the prompt has True where a token id should be"),
    "None among ids": ([1, None], "the prompt has None where a token id should be"),
    "ids in a list in a list": ([[1, 2]], r"the prompt has \[1, 2\] where a token id should be"),
    "a matrix": (np.ones((2, 2), dtype=int), r"the prompt has \[1, 1\] where a token id should be"),
    "floats": (torch.ones(3), "the prompt has 1.0 where a token id should be"),
    "a list of texts": (["a", "b"], "the prompt has 'a' where a token id should be"),
    "chat without a template": ([{"role": "user", "content": "x"}], "the chat template cannot"),
    "text that is no unicode": ("\ud800", "the tokenizer cannot take this text"),
}


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_is_refused_and_the_others_go_on(prompt: Any, message: str) -> None:
    engine = oracle_engine(tokenizer=ByteTokenizer())
    bystanders = Bystanders(engine)
    before = engine.snapshot()
    num_events = len(engine.log)
    with pytest.raises(InvalidRequestError, match=message):
        engine.add_request(prompt)
    with pytest.raises(InvalidRequestError):
        engine.stream(prompt)
    assert engine.snapshot() == before
    assert len(engine.log) == num_events
    bystanders.finish()
    assert_still_serves(engine)


def test_generate_refuses_all_its_prompts_if_one_is_bad() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        engine.generate([[1, 2], [3, 99]], greedy(4))
    assert len(engine.core.samples) == len(PROMPTS)
    bystanders.finish()


@pytest.mark.parametrize("prompt", ["abc", [{"role": "user", "content": "abc"}]])
def test_text_without_a_tokenizer_says_how_to_give_one(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"has no tokenizer; give it one .*or give token"):
        oracle_engine().add_request(prompt)


def test_the_longest_servable_request_is_served_and_one_token_more_is_not() -> None:
    engine = oracle_engine(num_blocks=3)  # 12 slots; the 13th token needs none
    assert engine.generate([1] * 10, greedy(3))[0].token_ids == expected([1] * 10, 3)
    with pytest.raises(InvalidRequestError, match=r"14 tokens .*can serve \(13\)"):
        engine.add_request([1] * 10, greedy(4))
    engine = oracle_engine(OracleModel(max_model_len=9))
    assert engine.generate([1] * 6, greedy(3))[0].token_ids == expected([1] * 6, 3)
    with pytest.raises(InvalidRequestError, match=r"10 tokens .*can serve \(9\)"):
        engine.add_request([1] * 6, greedy(4))


def test_without_max_tokens_a_request_gets_what_fits() -> None:
    engine = oracle_engine(num_blocks=3)
    output = engine.generate([1] * 10, SamplingParams(max_tokens=None))[0]
    assert output.token_ids == expected([1] * 10, 3)
    assert output.finish_reason == "length"


NAN, INF = math.nan, math.inf
BAD_PARAMS: list[tuple[dict[str, Any], str]] = [
    *[({"temperature": x}, "expected a finite number of at least 0") for x in (-1, NAN, INF, "1")],
    *[({"temperature": x}, "expected a finite number of at least 0") for x in (None, True)],
    *[({"temperature": x}, "expected") for x in (10**400, -(10**400))],
    *[({"top_p": x}, "expected a finite number above 0 and at most 1") for x in (0, 1.1, NAN, -1)],
    *[({"min_p": x}, "expected a finite number of at least 0 and at most 1") for x in (-0.1, 2)],
    *[({"top_k": x}, "expected a whole number of at least 0") for x in (-1, 1.0, None, True)],
    *[({"repetition_penalty": x}, "a finite number above 0") for x in (0, -1, NAN)],
    *[({"presence_penalty": x}, "expected a finite number") for x in (NAN, INF, "a")],
    *[({"frequency_penalty": x}, "expected a finite number") for x in (NAN, -INF, [1])],
    *[({"max_tokens": x}, "expected a whole number of at least 1") for x in (0, -1, 1.5, "8")],
    *[({"min_tokens": x}, "expected a whole number of at least 0") for x in (-1, 0.5)],
    ({"min_tokens": 5, "max_tokens": 4}, "lower one or raise the other"),
    *[({"n": x}, "expected a whole number of at least 1") for x in (0, -1, 1.0, None)],
    *[({"seed": x}, "expected a whole number") for x in (1.0, "1")],
    *[({"logprobs": x}, "expected a whole number of at least 0") for x in (-1, True, 2.0)],
    *[
        ({"stop": x}, "expected strings that are not empty")
        for x in ("", [""], [1], 5, b"x", {"a"})
    ],
    *[({"stop_token_ids": x}, "expected token ids") for x in ([-1], [1.0], "ab", 3, [True])],
    ({"ignore_eos": 1}, "expected True or False"),
]


@pytest.mark.parametrize(("values", "message"), BAD_PARAMS, ids=lambda x: repr(x)[:40])
def test_bad_parameters_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        SamplingParams(**values)
    assert next(iter(values)) in str(caught.value)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "greedy", 3, SamplingParams])
def test_parameters_of_another_type_are_refused(params: Any) -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    with pytest.raises(InvalidRequestError, match="expected SamplingParams"):
        engine.add_request([1], params)
    bystanders.finish()


@pytest.mark.parametrize("params", [[], [None], [SamplingParams()] * 3, 5, {"a": 1}])
def test_a_wrong_number_of_parameters_is_refused(params: Any) -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    with pytest.raises(InvalidRequestError, match=r"for 2 prompts; expected one .*or one each"):
        engine.generate([[1], [2]], params)
    bystanders.finish()


EXTREME_PARAMS: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 10**400},
    {"temperature": 1e38, "min_tokens": 3, "stop_token_ids": [1, 2, 3]},
    {"temperature": 1e-300},
    {"temperature": 1.0, "top_p": 1e-300},
    {"temperature": 1.0, "min_p": 1.0, "top_k": 1},
    {"min_tokens": 3, "stop_token_ids": range(50)},
    {"temperature": 1.0, "min_tokens": 3, "stop_token_ids": range(50)},
    {"stop_token_ids": [10**30], "min_tokens": 3},
    {"seed": -(10**50), "temperature": 1.0},
    {"logprobs": 10**30},
]


@pytest.mark.parametrize("values", EXTREME_PARAMS, ids=lambda x: str(x)[:40])
def test_parameters_at_the_edge_of_reason_harm_nobody(values: dict[str, Any]) -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    try:
        name = engine.add_request([1, 2, 3], SamplingParams(max_tokens=4, **values))
    except InvalidRequestError:
        bystanders.finish()
        return
    (last,) = [o for o in bystanders.finish() if o.request_id == name and o.finished]
    assert len(last.token_ids) == (3 if values.get("stop_token_ids") == range(50) else 4)
    assert all(0 <= t < 50 for t in last.token_ids)


@pytest.mark.parametrize(
    ("name", "value", "moderate"),
    [
        ("presence_penalty", 1e300, 1e29),
        ("presence_penalty", -1e39, -1e29),
        ("frequency_penalty", 1e39, 1e29),
        ("frequency_penalty", -1e300, -1e29),
        ("repetition_penalty", 1e300, 1e29),
        ("repetition_penalty", 1e-300, 1e-29),
        ("temperature", 1e300, 1e29),
    ],
)
def test_a_number_that_fp32_cannot_hold_is_refused_or_acts_like_a_very_large_one(
    name: str, value: float, moderate: float
) -> None:
    def tokens(value: float) -> tuple[int, ...]:
        params = SamplingParams(
            max_tokens=6,
            min_tokens=6,
            stop_token_ids=[5, 49],
            **{name: value},  # type: ignore[arg-type]
        )
        return oracle_engine().generate([1, 2, 3], params)[0].token_ids

    try:
        extreme = tokens(value)
    except InvalidRequestError as error:
        assert name in str(error)
    else:
        assert extreme == tokens(moderate)


# ---------------------------------------------------------------------- ids


def test_an_id_in_use_is_refused_until_its_last_output_was_handed_out() -> None:
    engine = oracle_engine()
    engine.add_request([1, 2], greedy(2), request_id="a")
    engine.step()
    with pytest.raises(InvalidRequestError, match="'a' is already being served; use another id"):
        engine.add_request([3], request_id="a")
    assert run(engine)["a"].token_ids == expected([1, 2], 2)
    engine.add_request([3], greedy(2), request_id="a")
    assert run(engine)["a"].token_ids == expected([3], 2)


@pytest.mark.parametrize("taken", ["a", "a#0", "a#1", "a#2"])
def test_samples_never_take_the_id_of_another_request(taken: str) -> None:
    engine = oracle_engine()
    engine.add_request([1, 2], greedy(6), request_id=taken)
    engine.step()
    num_events = len(engine.log)
    with pytest.raises(InvalidRequestError, match="already"):
        engine.add_request([3], greedy(2, n=3), request_id="a")
    assert len(engine.log) == num_events
    assert run(engine)[taken].token_ids == expected([1, 2], 6)


@pytest.mark.parametrize("request_id", [5, ["a"], b"a"])
def test_an_id_that_is_no_text_is_refused(request_id: Any) -> None:
    engine = oracle_engine()
    with pytest.raises(InvalidRequestError, match="request_id is .*expected a str"):
        engine.add_request([1], request_id=request_id)
    assert not engine.has_unfinished


@pytest.mark.parametrize("priority", [None, "high", math.nan, 1.5])
def test_a_priority_that_is_no_whole_number_is_refused(priority: Any) -> None:
    engine = oracle_engine(policy="priority")
    bystanders = Bystanders(engine)
    with pytest.raises(InvalidRequestError, match="priority is .*expected a whole number"):
        engine.add_request([1], priority=priority)
    bystanders.finish()


def test_made_up_ids_step_aside_for_those_of_users() -> None:
    engine = oracle_engine()
    engine.add_request([1], greedy(3), request_id="request-0")
    engine.add_request([2], greedy(3), request_id="request-1#0")
    names = [engine.add_request([3], greedy(3)), engine.add_request([4], greedy(3, n=2))]
    finals = run(engine)
    assert len(finals) == 4
    assert finals[names[0]].token_ids == expected([3], 3)
    assert finals[names[1]].token_ids == expected([4], 3)


# ---------------------------------------------------------------------- abort


def test_abort_ends_only_that_request_with_the_tokens_it_has() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    name = engine.add_request([1, 2, 3], greedy(20))
    bystanders.step()
    bystanders.step()
    engine.abort(name)
    (last,) = bystanders.step()
    assert (last.request_id, last.finish_reason) == (name, "abort")
    assert last.token_ids == expected([1, 2, 3], 2)
    assert last.timing.finished is not None
    assert bystanders.finish() == []


def test_a_waiting_request_can_be_aborted() -> None:
    engine = oracle_engine(max_num_seqs=3)
    bystanders = Bystanders(engine)
    name = engine.add_request([1, 2, 3], greedy(20))
    bystanders.step()
    engine.abort(name)
    (last,) = bystanders.step()
    assert (last.token_ids, last.finish_reason) == ((), "abort")
    assert last.timing.first_token is None
    bystanders.finish()


def test_abort_of_all_leaves_their_last_outputs_to_the_next_step() -> None:
    engine = oracle_engine()
    names = [engine.add_request([1], greedy(9)), engine.add_request([2], greedy(9, n=3))]
    engine.step()
    for name in names:
        engine.abort(name)
    assert engine.has_unfinished
    outputs = engine.step()
    assert [(o.request_id, o.finished) for o in outputs] == [(n, True) for n in names]
    assert [len(o.completions) for o in outputs] == [1, 3]
    assert run(engine) == {}
    assert engine.step() == []


@pytest.mark.parametrize("when", ["never added", "finished", "aborted", "aborted and delivered"])
def test_abort_of_what_is_not_being_served_says_so(when: str) -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    if when != "never added":
        engine.add_request([1], greedy(1 if when == "finished" else 9), request_id="a")
        bystanders.step()
    if when.startswith("aborted"):
        engine.abort("a")
    if when.endswith("delivered"):
        bystanders.step()
    with pytest.raises(UnknownRequestError, match="no unfinished request 'a'; it was never added"):
        engine.abort("a")
    bystanders.finish()


def test_abort_takes_the_id_of_the_request_not_of_one_sample() -> None:
    engine = oracle_engine()
    engine.add_request([1], greedy(4, n=2), request_id="a")
    with pytest.raises(UnknownRequestError):
        engine.abort("a#1")
    assert [c.token_ids for c in run(engine)["a"].completions] == [expected([1], 4)] * 2
