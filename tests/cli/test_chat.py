"""`paged-engine chat`, at a terminal and in a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.cli import main
from paged_engine.cli.chat import answer
from paged_engine.cli.conversation import Conversation
from paged_engine.errors import InvalidRequestError
from tests.cli.cli_helpers import (
    CTRL_C,
    CTRL_D,
    Terminal,
    interrupted,
    on_posix,
    reader_gone,
    run,
    start,
)
from tests.helpers.fakes import ByteTokenizer, OracleModel


class ChatTokenizer(ByteTokenizer):
    """With the chat template of the fixture `model_folder`."""

    chat_template = "there is one"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        said = "".join(f"[{m['role']}]{m['content']}\n" for m in messages)
        return said + "[assistant]" * add_generation_prompt


def conversation(num_blocks: int = 100, max_tokens: int = 8, **options: Any) -> Conversation:
    config = EngineConfig(block_size=4, num_blocks=num_blocks)
    tokenizer: Any = ChatTokenizer()
    engine = ContinuousEngine(OracleModel(vocab_size=128), tokenizer, config)
    return Conversation(engine, SamplingParams(max_tokens=max_tokens), **options)


def prompt_of(talk: Conversation) -> str:
    assert talk.last is not None
    return bytes(talk.last.prompt_token_ids).decode()


def test_a_message_goes_with_all_that_was_said_and_only_what_is_new_is_computed() -> None:
    talk = conversation(system="be kind")
    first = "".join(talk.ask("one"))
    assert talk.turns == [("one", first)] and len(first) == 8
    assert prompt_of(talk) == "[system]be kind\n[user]one\n[assistant]"
    second = "".join(talk.ask("two"))
    said = f"[system]be kind\n[user]one\n[assistant]{first}\n[user]two\n[assistant]"
    assert prompt_of(talk) == said
    assert talk.turns == [("one", first), ("two", second)]
    assert talk.last is not None
    known = len("[system]be kind\n[user]one\n[assistant]") + 7  # the last has no slot yet
    assert talk.last.num_cached_tokens == known // 4 * 4


def test_what_was_said_before_it_was_stopped_stays() -> None:
    talk = conversation()
    pieces = talk.ask("one")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert talk.turns == [("one", said)] and len(said) == 2
    assert not talk.engine.has_unfinished and talk.engine.pool.num_free == 100
    talk.ask("never begun").close()
    assert len(talk.turns) == 1


def test_the_oldest_turns_are_forgotten_when_there_is_no_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = conversation(num_blocks=22)  # 89 tokens, 8 of them for the answer
    for name in ("one", "two"):
        list(talk.ask(name))
    assert capsys.readouterr().err == ""
    turns = list(talk.turns)
    list(talk.ask("three"))
    assert talk.turns[:-1] == turns[1:]
    assert "two" in prompt_of(talk) and "one" not in prompt_of(talk)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "forgot the oldest 1 of 2 turns" in said


def test_a_long_answer_does_not_cost_the_history_its_room() -> None:
    talk = conversation(max_tokens=1000)  # of 401
    list(talk.ask("one"))
    assert talk.last is not None and len(talk.last.token_ids) == 401 - len("[user]one\n[assistant]")
    talk = conversation(max_tokens=1000)
    talk.turns = [("a" * 100, "b" * 100)]
    list(talk.ask("c" * 30))
    assert len(talk.turns) == 2 and "aaa" in prompt_of(talk)


def test_a_message_that_never_fits_was_not_said() -> None:
    talk = conversation(num_blocks=25)
    list(talk.ask("one"))
    turns = list(talk.turns)
    with pytest.raises(InvalidRequestError, match="the message has 118 tokens .* than the 101"):
        list(talk.ask("x" * 100))
    assert talk.turns == turns
    list(talk.ask("x" * 80))  # this one does, without the turn before it
    assert len(talk.turns) == 1


def test_a_message_that_cannot_be_taken_ends_a_pipe_but_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = conversation(num_blocks=25)
    answer("x" * 100, talk, is_terminal=True, verbose=False)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "the message has 118 tokens" in err
    with pytest.raises(InvalidRequestError):
        answer("x" * 100, talk, is_terminal=False, verbose=False)


@pytest.fixture
def chat(model_folder: Path) -> list[str]:
    return ["chat", "--model", str(model_folder), "--max-tokens"]


def answers(folder: Path, prompts: list[str], max_tokens: int) -> Iterator[str]:
    engine = ContinuousEngine.from_pretrained(str(folder), device="cpu", num_blocks=64)
    for output in engine.generate(prompts, SamplingParams(max_tokens=max_tokens)):
        yield output.text


def test_in_a_pipe_each_line_is_a_message(chat: list[str], model_folder: Path) -> None:
    lines = "one\n\n/reset\n/sing\n/system be kind\ntwo\n/quit\nthree\n"
    done = run(*chat, "7", "--verbose", "--no-progress", stdin=lines)
    assert done.returncode == 0
    prompts = ["[user]one\n[assistant]", "[system]be kind\n[user]two\n[assistant]"]
    assert done.stdout == "".join(f"{text}\n" for text in answers(model_folder, prompts, 7))
    assert [line.split(" in ")[0] for line in done.stderr.splitlines()] == [
        "paged-engine: 21 prompt tokens, 0 of them cached; 7 new ones",
        "paged-engine: forgot what was said",
        "paged-engine: no command /sing; /help lists them, and a space before / makes it a message",
        "paged-engine: the system message is set",
        "paged-engine: 37 prompt tokens, 0 of them cached; 7 new ones",
    ]


def test_a_model_without_a_chat_template_is_for_generate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["chat", "--model", "tiny", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "use paged-engine generate" in err


@on_posix
def test_at_a_terminal_ctrl_c_ends_the_answer_and_then_the_conversation(chat: list[str]) -> None:
    terminal = Terminal(*chat, "700", "--verbose")
    terminal.until("> ")
    terminal.type("tell me a story\n")
    terminal.until("a story\r\n")
    terminal.until_more_than(50)
    terminal.type(CTRL_C)
    terminal.until("paged-engine: stopped; what was said so far stays in the conversation\r\n")
    terminal.until("> ")
    terminal.type("/help\n")
    terminal.until("/reset ")
    terminal.until("> ")
    terminal.type("go on\n")
    terminal.until("go on\r\n")
    terminal.until(" prompt tokens, ")
    # What it says is no text, and reads as other tokens: what was asked is known for sure.
    assert int(terminal.until(" of them cached")) >= len("[user]tell me a story\n[assist")
    terminal.until("> ")
    code, said = terminal.end(press=CTRL_C)
    assert code == 130 and said.endswith("paged-engine: interrupted\r\n")


@on_posix
def test_ctrl_d_leaves_and_the_prompt_gets_into_no_pipe(chat: list[str]) -> None:
    reading, writing = os.pipe()
    terminal = Terminal(*chat, "5", stdout=writing)
    os.close(writing)
    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("> ")
    terminal.type(CTRL_D)
    assert terminal.end()[0] == 0
    with open(reading, encoding="utf-8") as answered:
        assert len(answered.read().splitlines()) >= 1


@on_posix
def test_in_a_pipe_ctrl_c_ends_it_with_130(chat: list[str]) -> None:
    process = start(*chat, "15000")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    code, said = interrupted(process)
    assert (code, said.strip()) == (130, "paged-engine: interrupted")


@on_posix
def test_a_closed_pipe_ends_it_quietly(chat: list[str]) -> None:
    process = start(*chat, "15000")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    assert reader_gone(process) == (0, "")
