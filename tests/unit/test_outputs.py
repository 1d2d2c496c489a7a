"""What is kept of a request for its user: everything once, and in time."""

from __future__ import annotations

from paged_engine.outputs import UserRequest
from paged_engine.request import Request, RequestStatus, SamplingParams, TokenLogprob
from tests.helpers.fakes import ByteTokenizer


def user_request(n: int = 1, tokenizer: bool = True, **params: object) -> UserRequest:
    values = SamplingParams(n=n, **params)  # type: ignore[arg-type]
    requests = [Request(f"a#{i}", [1, 2], values, sample_index=i) for i in range(n)]
    return UserRequest("a", requests, ByteTokenizer() if tokenizer else None)


def give(user: UserRequest, index: int, text: str, logprob: float | None = None) -> str:
    said = ""
    for token_id in text.encode():
        entry = None if logprob is None else TokenLogprob(token_id, logprob)
        said += user.samples[index].push(token_id, entry)
    return said


def test_what_is_new_is_told_once() -> None:
    user = user_request()
    assert give(user, 0, "ab") == "ab"
    first = user.output().completions[0]
    assert (first.new_text, first.new_token_ids) == ("ab", (97, 98))
    second = user.output().completions[0]
    assert (second.new_text, second.new_token_ids, second.text) == ("", (), "ab")
    give(user, 0, "c")
    third = user.output().completions[0]
    assert (third.new_text, third.text, third.token_ids) == ("c", "abc", (97, 98, 99))
    assert first.text == "ab"


def test_samples_do_not_mix() -> None:
    user = user_request(n=2)
    give(user, 0, "x")
    give(user, 1, "yz")
    assert [c.text for c in user.output().completions] == ["x", "yz"]
    assert [c.index for c in user.output().completions] == [0, 1]


def test_it_is_finished_when_all_samples_are() -> None:
    user = user_request(n=2)
    for k, sample in enumerate(user.samples):
        assert not user.is_finished
        assert not user.output().finished
        sample.request.set_status(RequestStatus.FINISHED_ABORTED)
        sample.request.finished_time = 5.0 + k
    assert user.is_finished
    output = user.output()
    assert output.finished
    assert output.timing.finished == 6.0


def test_times_of_samples_are_those_of_the_first_to_get_there() -> None:
    user = user_request(n=2)
    assert user.output().timing.first_token is None
    user.samples[1].request.first_scheduled_time = 2.0
    assert user.output().timing.first_scheduled == 2.0
    user.samples[0].request.first_scheduled_time = 3.0
    user.samples[1].request.first_token_time = 4.0
    assert user.output().timing.first_token == 4.0
    user.samples[0].request.first_token_time = 5.0
    timing = user.output().timing
    assert (timing.first_scheduled, timing.first_token, timing.finished) == (2.0, 4.0, None)


def test_logprobs_are_there_exactly_if_asked_for() -> None:
    user = user_request(logprobs=0)
    assert user.output().logprobs == ()
    give(user, 0, "ab", logprob=-0.5)
    assert user.output().logprobs == (TokenLogprob(97, -0.5), TokenLogprob(98, -0.5))
    user = user_request()
    give(user, 0, "ab")
    assert user.output().logprobs is None


def test_without_a_tokenizer_there_is_no_text() -> None:
    user = user_request(tokenizer=False)
    assert give(user, 0, "ab") == ""
    assert user.samples[0].finish() == ""
    output = user.output()
    assert (output.text, output.token_ids) == ("", (97, 98))


def test_a_token_that_was_not_handed_over_is_in_no_output() -> None:
    """The scheduler has it already; text and log-probability come later, all together."""
    user = user_request()
    give(user, 0, "a")
    user.samples[0].request.token_ids += [97, 98]
    assert user.output().token_ids == (97,)


def test_held_back_text_comes_at_the_end() -> None:
    user = user_request(stop=["STOP"])
    assert give(user, 0, "xST") == "x"
    assert user.samples[0].finish() == "ST"
    assert user.output().text == "xST"
    assert user.samples[0].finish() == ""


def test_a_tokenizer_that_fails_is_remembered_and_asked_no_more() -> None:
    class Failing(ByteTokenizer):
        def decode(self, token_ids: object, *, skip_special_tokens: bool = True) -> str:
            raise OverflowError("no such token")

    user = UserRequest("a", [Request("a", [1])], Failing())
    sample = user.samples[0]
    assert sample.push(5, None) == ""
    assert sample.failure == "the tokenizer raised OverflowError: no such token"
    assert sample.finish() == ""
    assert user.output().token_ids == (5,)
