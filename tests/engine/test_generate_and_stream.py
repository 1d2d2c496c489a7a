"""`generate`, `stream` and `step` side by side: everybody gets everything, in order, once."""

from __future__ import annotations

import gc
import re
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.errors import UnknownRequestError
from tests.engine.engine_helpers import (
    PROMPTS,
    Bystanders,
    Collected,
    ScriptModel,
    assert_idle,
    assert_still_serves,
    check,
    expected,
    greedy,
    oracle_engine,
    run,
)
from tests.helpers.fakes import ByteTokenizer, VirtualClock

SINGLE_PROMPTS = {
    "ids": [7, 8, 9],
    "a tuple": (7, 8, 9),
    "an array": np.array([7, 8, 9]),
    "a tensor": torch.tensor([7, 8, 9]),
    "a tensor of one row": torch.tensor([[7, 8, 9]]),
    "numpy ids in a list": [np.int64(7), np.int32(8), 9],
    "tensor ids in a list": [torch.tensor(7), torch.tensor(8), 9],
    "a range": range(7, 10),
    "text": "\x07\x08\x09",
}


@pytest.mark.parametrize("prompt", SINGLE_PROMPTS.values(), ids=SINGLE_PROMPTS)
def test_one_prompt_may_stand_for_itself(prompt: Any) -> None:
    engine = oracle_engine(tokenizer=ByteTokenizer())
    (output,) = engine.generate(prompt, greedy(4))
    assert output.prompt_token_ids == (7, 8, 9)
    assert output.token_ids == expected([7, 8, 9], 4)


SEVERAL_PROMPTS = {
    "lists": [[7, 8, 9], [4, 5]],
    "tuples": ((7, 8, 9), (4, 5)),
    "arrays": [np.array([7, 8, 9]), np.array([4, 5])],
    "tensors": [torch.tensor([7, 8, 9]), torch.tensor([4, 5])],
    "texts": ["\x07\x08\x09", "\x04\x05"],
    "of every kind": [torch.tensor([7, 8, 9]), "\x04\x05"],
}


@pytest.mark.parametrize("prompts", SEVERAL_PROMPTS.values(), ids=SEVERAL_PROMPTS)
def test_outputs_come_in_the_order_of_the_prompts(prompts: Any) -> None:
    engine = oracle_engine(tokenizer=ByteTokenizer())
    outputs = engine.generate(prompts, [greedy(6), greedy(2)])  # the second ends first
    assert [o.token_ids for o in outputs] == [expected([7, 8, 9], 6), expected([4, 5], 2)]


def test_no_prompts_give_no_outputs() -> None:
    assert oracle_engine().generate([]) == []


class ChatTokenizer(ByteTokenizer):
    """Has a chat template."""

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_chat_messages_are_one_prompt_and_lists_of_them_several() -> None:
    engine = ContinuousEngine(
        ScriptModel(*["ih"] * 256), ChatTokenizer(), EngineConfig(block_size=4, num_blocks=64)
    )
    chat = [{"role": "user", "content": "hello"}]
    (output,) = engine.generate(chat, greedy(2))
    assert bytes(output.prompt_token_ids) == b"<user>hello<assistant>"
    assert output.text == "hi"
    assert [o.text for o in engine.generate([chat, chat], greedy(2))] == ["hi", "hi"]


def test_samples_are_independent_draws_and_the_same_ones_again() -> None:
    params = SamplingParams(temperature=3.0, n=4, seed=5, max_tokens=8, logprobs=2)
    first = oracle_engine().generate([1, 2, 3, 4, 5], params)[0]
    second = oracle_engine().generate([1, 2, 3, 4, 5], params)[0]
    assert [c.index for c in first.completions] == [0, 1, 2, 3]
    assert len({c.token_ids for c in first.completions}) == 4
    assert [c.token_ids for c in first.completions] == [c.token_ids for c in second.completions]
    for c in first.completions:
        assert c.logprobs is not None
        assert [x.token_id for x in c.logprobs] == list(c.token_ids)
        assert all(len(x.top) == 2 and x.logprob <= 0 for x in c.logprobs)
    assert first.token_ids == first.completions[0].token_ids
    assert first.logprobs == first.completions[0].logprobs


@pytest.mark.parametrize("number", [None, 0, 1, 3, 500])
def test_logprobs_are_of_the_models_own_distribution(number: int | None) -> None:
    engine = oracle_engine()
    params = SamplingParams(logprobs=number, max_tokens=3, repetition_penalty=2.0)
    output = engine.generate([1, 2, 3], params)[0]
    if number is None:
        assert output.logprobs is None
        return
    assert output.logprobs is not None
    from tests.helpers.fakes import OracleModel, chain

    end, ids = 0, [1, 2, 3, *output.token_ids]
    for position, token_id in enumerate(ids[:-1]):
        end = chain(end, token_id, position)
        if position < 2:
            continue
        wanted = torch.log_softmax(OracleModel().logits([end])[0], -1)
        got = output.logprobs[position - 2]
        assert got.logprob == pytest.approx(float(wanted[got.token_id]), abs=1e-5)
        assert len(got.top) == min(number, 50)
        values, _ = wanted.topk(min(number, 50))
        assert [v for _, v in got.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_an_output_never_changes_once_it_was_handed_out() -> None:
    engine = oracle_engine(tokenizer=ByteTokenizer())
    engine.add_request([1, 2, 3], greedy(6, n=2, logprobs=1))
    seen = []
    while engine.has_unfinished:
        for output in engine.step():
            seen.append((output, repr(output), hash(output.token_ids)))
    assert len(seen) > 5
    for output, then, _ in seen:
        assert repr(output) == then
        with pytest.raises(FrozenInstanceError):
            output.request_id = "other"  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            output.completions[0].text = "other"  # type: ignore[misc]
        assert isinstance(output.prompt_token_ids, tuple)
        assert isinstance(output.completions[0].token_ids, tuple)


def test_outputs_know_when_each_stage_was_reached() -> None:
    clock = VirtualClock()
    engine = oracle_engine(clock=clock)
    engine.add_request([1, 2], greedy(2), request_id="a")
    clock.now = 2.0
    (first,) = engine.step()
    clock.now = 5.0
    (last,) = engine.step()
    assert first.timing.ttft == 2.0
    assert (first.timing.finished, first.timing.e2e) == (None, None)
    assert (last.timing.arrival, last.timing.first_scheduled) == (0.0, 2.0)
    assert (last.timing.first_token, last.timing.finished, last.timing.e2e) == (2.0, 5.0, 5.0)


# ---------------------------------------------------------------------- while others are served


def test_generate_leaves_the_outputs_of_others_to_the_next_step() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine, num_tokens=6)
    outputs = engine.generate([[1, 2], [3, 4]], greedy(12))
    assert [o.token_ids for o in outputs] == [expected([1, 2], 12), expected([3, 4], 12)]
    assert engine.has_unfinished
    assert bystanders.finish() == []


def test_generate_in_between_loses_nothing_of_those_that_are_not_done() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine, num_tokens=12)
    for _ in range(3):
        engine.generate([5], greedy(2))
    assert bystanders.finish() == []


def test_two_streams_take_turns() -> None:
    engine = oracle_engine()
    streams = [engine.stream([1, 2], greedy(7)), engine.stream([3, 4, 5], greedy(4))]
    collected = Collected()
    open_ = list(streams)
    while open_:
        for stream in list(open_):
            output = next(stream, None)
            if output is None:
                open_.remove(stream)
            else:
                collected.take([output])
    assert [o.token_ids for o in collected.final.values()] == [
        expected([3, 4, 5], 4),
        expected([1, 2], 7),
    ]
    assert_idle(engine)


def test_a_stream_gets_what_others_stepped_for_it() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine, num_tokens=5)
    stream = engine.stream([1, 2], greedy(6))
    while bystanders.prompts.keys() - bystanders.collected.final.keys():
        assert bystanders.step() == []
    collected = Collected()
    for output in stream:
        collected.take([output])
    (last,) = collected.final.values()
    assert last.token_ids == expected([1, 2], 6)
    assert bystanders.finish() == []


def test_a_stream_leaves_the_outputs_of_others_to_the_next_step() -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine, num_tokens=12)
    assert [o.completions[0].token_ids for o in engine.stream([1, 2], greedy(3))] == [
        expected([1, 2], n) for n in (1, 2, 3)
    ]
    assert bystanders.finish() == []


def test_step_collects_several_steps_of_one_request_into_outputs_in_order() -> None:
    engine = oracle_engine()
    engine.add_request([1, 2], greedy(9), request_id="a")
    list(engine.stream([3], greedy(4)))
    collected = Collected()
    while engine.has_unfinished:
        collected.take(engine.step())
    assert collected.final["a"].token_ids == expected([1, 2], 9)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_closing_a_stream_early_aborts_its_request(after: int) -> None:
    engine = oracle_engine()
    bystanders = Bystanders(engine)
    stream: Any = engine.stream([1, 2], greedy(20))
    for _ in range(after):
        next(stream)
    stream.close()
    assert len(engine.core.samples) == len(PROMPTS)
    check(engine)
    assert list(stream) == []
    assert bystanders.finish() == []
    assert_still_serves(engine)


def test_a_stream_that_nobody_holds_any_more_is_closed() -> None:
    engine = oracle_engine()
    stream = engine.stream([1, 2], greedy(20))
    del stream
    gc.collect()
    assert not engine.core.samples
    for output in engine.stream([1, 2], greedy(20)):
        if len(output.token_ids) == 2:
            break
    del output
    gc.collect()
    assert not engine.core.samples
    check(engine)


def test_a_stream_whose_request_is_aborted_says_so_in_its_last_output() -> None:
    engine = oracle_engine()
    stream = engine.stream([1, 2], greedy(20))
    first = next(stream)
    engine.abort(first.request_id)
    rest = list(stream)
    assert [o.finish_reason for o in rest] == ["abort"]
    assert rest[0].token_ids == first.token_ids
    assert_idle(engine)


def test_a_request_of_generate_that_is_aborted_has_that_reason() -> None:
    engine = oracle_engine()

    def abort_at_third_token(event: Any) -> None:
        if event.kind == "token" and event.step == 3 and event.request_id == "request-0":
            engine.abort("request-0")

    engine.log.subscribe(abort_at_third_token)
    outputs = engine.generate([[1, 2], [3, 4]], greedy(6))
    assert [o.finish_reason for o in outputs] == ["abort", "length"]
    assert outputs[1].token_ids == expected([3, 4], 6)
    assert_idle(engine)


def test_the_request_of_a_finished_stream_is_unknown() -> None:
    engine = oracle_engine()
    (output,) = engine.stream([1, 2], greedy(1))
    with pytest.raises(UnknownRequestError):
        engine.abort(output.request_id)


def test_text_and_tokens_of_a_stream_add_up() -> None:
    text = "one € two 😀 three"
    config = EngineConfig(block_size=4, num_blocks=64)
    engine = ContinuousEngine(ScriptModel(text), ByteTokenizer(), config)
    outputs = list(engine.stream([0], greedy(len(text.encode()))))
    assert "".join(o.completions[0].new_text for o in outputs) == text
    assert bytes(t for o in outputs for t in o.completions[0].new_token_ids) == text.encode()


def test_a_progress_bar_counts_the_requests(capsys: pytest.CaptureFixture[str]) -> None:
    oracle_engine().generate(PROMPTS, greedy(3), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"requests: 100%.* 3/3 ", err)
    oracle_engine().generate(PROMPTS, greedy(3))
    assert capsys.readouterr() == ("", "")


def test_step_of_an_idle_engine_does_nothing() -> None:
    engine = oracle_engine()
    num_events = len(engine.log)
    assert engine.step() == []
    assert len(engine.log) == num_events
    assert run(engine) == {}
