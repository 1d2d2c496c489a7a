"""When a request ends by itself: what it says, and with which reason."""

from __future__ import annotations

from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig, RequestOutput, SamplingParams
from paged_engine.errors import InvalidRequestError
from tests.engine.engine_helpers import (
    Collected,
    ScriptModel,
    ToyScheduler,
    assert_idle,
    check,
    oracle_engine,
)
from tests.helpers.fakes import ByteTokenizer


def script_engine(
    *scripts: str | bytes, eos: tuple[int, ...] = (), **parts: Any
) -> ContinuousEngine:
    config = EngineConfig(block_size=4, num_blocks=64)
    return ContinuousEngine(ScriptModel(*scripts, eos=eos), ByteTokenizer(), config, **parts)


def say(script: str | bytes, **params: Any) -> tuple[RequestOutput, list[str]]:
    """The final output, and the new text of each step before it was put together."""
    engine = script_engine(script)
    engine.add_request([0], SamplingParams(**params), request_id="a")
    collected, pieces = Collected(), []
    while engine.has_unfinished:
        outputs = engine.step()
        collected.take(outputs)
        check(engine)
        pieces += [o.completions[0].new_text for o in outputs]
    assert_idle(engine)
    assert "".join(e.text for e in engine.log.of_kind("token", "finished")) == "".join(pieces)  # type: ignore[attr-defined]
    return collected.final["a"], pieces


def test_a_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    output, pieces = say("one. STOP two", stop=["STOP"])
    assert (output.text, output.finish_reason) == ("one. ", "stop")
    assert output.completions[0].stop_reason == "STOP"
    assert bytes(output.token_ids) == b"one. STOP"
    assert pieces == [*"one. ", "", "", "", ""]


def test_a_stop_string_may_be_the_very_first_token() -> None:
    output, _ = say("xyz", stop="x")
    assert (output.text, output.finish_reason, len(output.token_ids)) == ("", "stop", 1)


def test_a_stop_string_may_end_inside_nothing_but_a_whole_character() -> None:
    output, pieces = say("é€ü", stop="€")
    assert (output.text, output.finish_reason) == ("é", "stop")
    assert bytes(output.token_ids) == "é€".encode()
    assert "".join(pieces) == "é"


def test_of_two_overlapping_stop_strings_the_first_to_be_complete_counts() -> None:
    output, _ = say("aabcd", stop=["abcd", "bc"])
    assert (output.text, output.completions[0].stop_reason) == ("aa", "bc")
    output, _ = say("aabcd", stop=["abc", "bc"])  # complete together: the one that begins first
    assert (output.text, output.completions[0].stop_reason) == ("a", "abc")


def test_no_stop_of_any_kind_before_min_tokens() -> None:
    output, _ = say("ab.ab.ab.", stop=["."], min_tokens=4, max_tokens=20)
    assert (output.text, output.finish_reason) == ("ab.ab", "stop")
    output, _ = say("abc", stop_token_ids=[ord("c")], min_tokens=3, max_tokens=20)
    assert (output.text, output.finish_reason) == ("ab\0abc", "stop")  # something else instead


def test_text_held_back_comes_when_the_request_ends_otherwise() -> None:
    output, pieces = say("one STO", stop=["STOP"], max_tokens=7)
    assert (output.text, output.finish_reason) == ("one STO", "length")
    assert pieces[-1] == "STO"
    output, _ = say("one €", max_tokens=6)
    assert output.text == "one \ufffd"


def test_text_held_back_comes_when_the_request_is_aborted() -> None:
    engine = script_engine("STOx")
    engine.add_request([0], SamplingParams(stop="STOP"), request_id="a")
    assert [engine.step()[0].completions[0].new_text for _ in range(3)] == ["", "", ""]
    engine.abort("a")
    (last,) = engine.step()
    assert (last.text, last.completions[0].new_text, last.finish_reason) == ("STO", "STO", "abort")


def test_a_stop_token_is_kept_and_named() -> None:
    output, _ = say("abcd", stop_token_ids=[ord("c")])
    assert (bytes(output.token_ids), output.text) == (b"abc", "abc")
    assert (output.finish_reason, output.completions[0].stop_reason) == ("stop", ord("c"))


def test_end_of_sequence_ends_unless_it_is_to_be_ignored() -> None:
    for ignore, wanted in ((False, ("stop", b"ab")), (True, ("length", b"abab"))):
        engine = script_engine("ab", eos=(ord("b"),))
        output = engine.generate([[0]], SamplingParams(max_tokens=4, ignore_eos=ignore))[0]
        assert (output.finish_reason, bytes(output.token_ids)) == wanted


def test_the_last_allowed_token_may_still_complete_a_stop() -> None:
    output, _ = say("abc", stop="c", max_tokens=3)
    assert output.text == "ab"


def test_samples_stop_each_on_its_own() -> None:
    engine = script_engine("ab.ab.")
    output = engine.generate([[0]], SamplingParams(stop=".", n=3))[0]
    assert [(c.text, c.finish_reason) for c in output.completions] == [("ab", "stop")] * 3


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(InvalidRequestError, match="stop strings need a tokenizer; give the engine"):
        oracle_engine().add_request([1], SamplingParams(stop="x"))


def test_a_scheduler_that_knows_only_abort_stops_with_the_same_reason() -> None:
    engine = script_engine("one. STOP two", scheduler=ToyScheduler)
    output = engine.generate([[0]], SamplingParams(stop="STOP"))[0]
    assert (output.text, output.finish_reason) == ("one. ", "stop")
    assert [e.reason for e in engine.log.of_kind("finished")] == ["stop"]  # type: ignore[attr-defined]
    assert engine.pool.num_free == 64


class FailingTokenizer(ByteTokenizer):
    """Cannot decode one of its tokens."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str:
        if ord("!") in token_ids:
            raise TypeError("token 33 has no text")
        return super().decode(token_ids)


@pytest.mark.parametrize("script", ["!", "a!", "ab!c"])
def test_a_tokenizer_that_fails_ends_only_that_request(script: str) -> None:
    config = EngineConfig(block_size=4, num_blocks=64)
    engine = ContinuousEngine(ScriptModel("hello", script), FailingTokenizer(), config)
    engine.add_request([0], SamplingParams(max_tokens=5), request_id="good")
    engine.add_request([1], SamplingParams(max_tokens=5), request_id="bad")
    collected = Collected()
    while engine.has_unfinished:
        collected.take(engine.step())
        check(engine)
    assert_idle(engine)
    assert collected.final["good"].text == "hello"
    bad = collected.final["bad"]
    assert bad.finish_reason == "error"
    assert bad.completions[0].stop_reason == "the tokenizer raised TypeError: token 33 has no text"
    assert bad.text == script[: script.index("!")]
