"""What a request may ask for, and which states it passes through."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from paged_engine.errors import IllegalTransitionError, InvalidRequestError
from paged_engine.request import (
    LEGAL_TRANSITIONS,
    Completion,
    Request,
    RequestOutput,
    RequestStatus,
    SamplingParams,
    Timing,
    check_servable,
)

S = RequestStatus
ENDS = {S.FINISHED_ABORTED, S.FINISHED_IGNORED, S.FINISHED_ERROR}
LEGAL = {
    S.WAITING: {S.RUNNING, *ENDS},
    S.RUNNING: {S.WAITING, S.PREEMPTED, S.FINISHED_STOPPED, S.FINISHED_LENGTH, *ENDS},
    S.PREEMPTED: {S.RUNNING, *ENDS},
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(S, S)))
def test_a_request_goes_only_where_its_state_leads(before: S, after: S) -> None:
    request = Request("a", [1], status=before)
    if after in LEGAL.get(before, set()):
        request.set_status(after)
        assert request.status is after
    else:
        with pytest.raises(IllegalTransitionError, match=f"'a' is {before.name}"):
            request.set_status(after)
        assert request.status is before


def test_nothing_leads_out_of_a_finished_state() -> None:
    finished = {s for s in S if s.is_finished}
    assert finished == {s for s in S if s.name.startswith("FINISHED_")}
    assert all(not LEGAL_TRANSITIONS[s] for s in finished)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(
            ["temperature", "top_p", "min_p", "repetition_penalty"],
            [math.nan, math.inf, -math.inf, -0.1, "1", None, True, 1j, 10**400],
        ),
        *itertools.product(
            ["presence_penalty", "frequency_penalty"], [math.nan, math.inf, "1", None, False]
        ),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        *itertools.product(
            ["top_k", "min_tokens", "n", "logprobs", "max_tokens"], [-1, 1.0, "1", True, math.nan]
        ),
        ("top_k", None),
        ("n", 0),
        ("n", None),
        ("max_tokens", 0),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", True),
        ("ignore_eos", 1),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop", None),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [1.0]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", None),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} is .*; expected "):
        SamplingParams(**{name: value})


def test_more_tokens_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens is 5, more than max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5
    assert SamplingParams(min_tokens=500, max_tokens=None).max_tokens is None


def test_the_limits_themselves_are_allowed() -> None:
    SamplingParams(temperature=0, top_p=1, min_p=1, top_k=0, n=1, logprobs=0, max_tokens=1, seed=-1)
    SamplingParams(top_p=1e-9, repetition_penalty=1e-9, presence_penalty=-2, frequency_penalty=-2)


def test_stops_are_kept_as_values_that_nobody_can_change() -> None:
    stops, ids = ["a"], [1, 1, 2]
    params = SamplingParams(stop=stops, stop_token_ids=ids)
    stops.append("b")
    ids.append(3)
    assert (params.stop, params.stop_token_ids) == (("a",), frozenset({1, 2}))
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert hash(params) == hash(SamplingParams(stop="a", stop_token_ids={2, 1}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": -0.1}, True),
        ({"frequency_penalty": 0.1}, True),
    ],
)
def test_whether_there_are_penalties(options: dict[str, float], expected: bool) -> None:
    assert SamplingParams(**options).has_penalties is expected  # type: ignore[arg-type]


def running(prompt: list[int], max_tokens: int = 8, **options: Any) -> Request:
    eos = options.pop("eos", ())
    params = SamplingParams(max_tokens=max_tokens, **options)
    return Request(
        "a",
        prompt,
        params,
        max_tokens=max_tokens,
        eos_token_ids=frozenset(eos),
        status=RequestStatus.RUNNING,
    )


def test_a_request_counts_prompt_and_output_apart() -> None:
    prompt = [1, 2, 3]
    request = running(prompt)
    request.append_token(4)
    assert (request.num_tokens, request.num_prompt_tokens, request.num_output_tokens) == (4, 3, 1)
    assert request.output_token_ids == [4]
    assert prompt == [1, 2, 3] and not request.is_finished


def test_max_tokens_one_gives_one_token() -> None:
    request = running([1], max_tokens=1)
    request.append_token(2)
    assert request.status is S.FINISHED_LENGTH
    assert request.output_token_ids == [2] and request.stop_reason is None


def test_the_first_token_can_be_the_last() -> None:
    request = running([1], eos=[2])
    request.append_token(2)
    assert (request.status, request.stop_reason) == (S.FINISHED_STOPPED, 2)


def test_a_stop_at_the_last_token_counts_as_a_stop() -> None:
    request = running([1], max_tokens=1, stop_token_ids=[2])
    request.append_token(2)
    assert request.status is S.FINISHED_STOPPED


def test_end_of_sequence_can_be_ignored_but_stop_tokens_cannot() -> None:
    request = running([1], eos=[2], stop_token_ids=[3], ignore_eos=True)
    request.append_token(2)
    assert not request.is_finished
    request.append_token(3)
    assert request.status is S.FINISHED_STOPPED


def test_no_stop_before_min_tokens() -> None:
    request = running([1], eos=[2], min_tokens=2)
    request.append_token(2)
    assert not request.is_finished
    request.append_token(2)
    assert request.status is S.FINISHED_STOPPED


@pytest.mark.parametrize("status", [s for s in S if s is not S.RUNNING])
def test_only_a_running_request_takes_tokens(status: S) -> None:
    request = Request("a", [1], status=status)
    with pytest.raises(IllegalTransitionError, match="only a running request takes tokens"):
        request.append_token(2)
    assert request.num_output_tokens == 0


def test_what_can_never_be_served_is_refused_with_the_reason() -> None:
    check_servable(5, 3, 8)
    with pytest.raises(InvalidRequestError, match=r"needs 9 tokens \(5 of prompt and up to 4"):
        check_servable(5, 4, 8)


def test_timing_is_told_from_arrival() -> None:
    timing = Timing(arrival=1.0, first_scheduled=2.0, first_token=3.5, finished=6.0)
    assert (timing.ttft, timing.e2e) == (2.5, 5.0)
    early = Timing(1.0, None, None, None)
    assert early.ttft is None and early.e2e is None


def test_an_output_speaks_for_its_first_sample_and_is_finished_when_all_are() -> None:
    first = Completion(0, (1, 2), "ab", finish_reason="length")
    second = Completion(1, (3,), "c")
    timing = Timing(0.0, None, None, None)
    output = RequestOutput("a", (9,), (first, second), timing)
    assert (output.token_ids, output.text, output.finish_reason) == ((1, 2), "ab", "length")
    assert output.logprobs is None and not output.finished
    assert RequestOutput("a", (9,), (first,), timing).finished
