"""The widget without a page: what it sends, keeps, exports and refuses."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig
from paged_engine.errors import InvalidConfigError, PagedEngineError
from paged_engine.models import tiny
from paged_engine.visualizer import EngineView
from paged_engine.visualizer.view import _about
from tests.browser.runs import eventful
from tests.engine.engine_helpers import greedy, oracle_engine
from tests.helpers.fakes import ByteTokenizer, OracleModel


def loaded() -> ContinuousEngine:
    engine = oracle_engine()
    for number in (1, 2):
        engine.add_request([number, 7, 8], greedy(12))
    return engine


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(EngineView, "send", lambda self, message: messages.append(message))
    return messages


def frames_of(messages: list[dict[str, Any]]) -> list[int]:
    return [f["s"] for m in messages if m["kind"] == "frames" for f in m["frames"]]


def test_a_page_that_is_ready_is_sent_everything_and_then_what_is_new(
    sent: list[dict[str, Any]],
) -> None:
    engine = loaded()
    engine.step()
    view = EngineView(engine)
    view._receive(view, {"cmd": "ready", "page": "p"}, [])
    (first,) = sent
    assert (first["kind"], first["to"], first["status"]["playing"]) == ("document", "p", False)
    assert [f["s"] for f in first["document"]["frames"]] == [1]
    sent.clear()
    view.step()
    view.step()
    assert frames_of(sent) == [2, 3]
    view.finish()
    assert frames_of(sent) == list(range(2, 13))
    assert repr(view) == "EngineView(controls, blocks, lanes, gauges, requests; 12 steps)"


def test_what_is_new_says_when_the_next_comes_and_how_many_cores_are_idle(
    sent: list[dict[str, Any]],
) -> None:
    view = EngineView(loaded())
    assert view._player is not None
    for idle, every in ((0, 667), (3, 200)):
        view._player.idle_cores.count = idle
        view.show()
        assert (sent[-1]["idle"], sent[-1]["every"]) == (idle, every)


def test_a_played_run_is_kept_once_at_its_end(
    sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing takes as long as a step or longer."""
    kept: list[int] = []
    monkeypatch.setattr(EngineView, "_save", lambda self: kept.append(len(self.timeline)))
    view = EngineView(loaded())
    kept.clear()

    async def play() -> None:
        view.play()
        assert view._player is not None and view._player._task is not None
        await view._player._task

    asyncio.run(play())
    assert kept == [len(view.timeline)] and frames_of(sent)[-1] == 12


def test_the_run_is_kept_with_the_notebook() -> None:
    view = EngineView(loaded())
    view.finish()
    document = json.loads(zlib.decompress(view.saved))
    assert [frame["s"] for frame in document["frames"]] == list(range(13))
    assert len(view.saved) < 3000


def test_what_the_reader_picks_is_known_in_python(sent: list[dict[str, Any]]) -> None:
    view = EngineView(loaded())
    picked = {"cmd": "pick", "page": "p", "block": 3, "request": "request-0", "position": 7}
    view._receive(view, picked, [])
    assert (view.picked_block, view.picked_request, view.picked_position) == (3, "request-0", 7)
    view._receive(view, {**picked, "block": None, "request": None, "position": None}, [])
    assert (view.picked_block, view.picked_request, view.picked_position) == (None, None, None)


def test_parts_can_be_shown_alone() -> None:
    engine = loaded()
    assert EngineView(engine, parts="blocks").parts == ["blocks"]
    assert EngineView(engine, parts=["lanes", "gauges"]).parts == ["lanes", "gauges"]
    with pytest.raises(InvalidConfigError, match="no part 'block'; expected some of controls, "):
        EngineView(engine, parts=["block"])


def test_an_engine_that_records_nothing_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="record_events=True"):
        EngineView(oracle_engine(record_events=False))


def test_a_recorded_run_is_shown_without_an_engine(tmp_path: Path) -> None:
    engine = eventful()
    engine.log.to_jsonl(tmp_path / "run.jsonl")
    view = EngineView.replay(tmp_path / "run.jsonl")
    assert not view.live and not view.is_playing
    assert view.timeline.document() == EngineView.replay(engine.log).timeline.document()
    for act in (view.play, view.pause, view.step, view.finish):
        with pytest.raises(InvalidConfigError, match="recorded run"):
            act()


def test_a_log_that_lost_its_beginning_is_shown_from_where_it_begins() -> None:
    engine = oracle_engine(max_events=40)
    for number in range(6):
        engine.add_request([number, 7, 8], greedy(12))
    while engine.has_unfinished:
        engine.step()
    assert engine.log.num_dropped
    view = EngineView(engine)
    assert view.timeline.key_frame()["num_blocks"] == 32
    base = engine.core.recorder.base  # type: ignore[union-attr]
    before = [b.ref_cnt for b in base.blocks]
    view.timeline._fold()
    assert [b.ref_cnt for b in base.blocks] == before  # the engine's own is not touched


def test_a_page_of_its_own_holds_everything(tmp_path: Path) -> None:
    view = EngineView(loaded())
    view.finish()
    view.export_html(tmp_path / "run.html", title="a <run>")
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "a &lt;run&gt;" in page and "http" not in page.replace("http://www.w3.org", "")
    assert len(page) < 100_000


# ------------------------------------------------------------------ what was asked


class Chatty(ByteTokenizer):
    """A tokenizer with special tokens, from 200 on, and a chat template."""

    def __init__(self, begin: str, turns: dict[str, str], reply: str, special: list[str]) -> None:
        self._begin, self._turns, self._reply = begin, turns, reply
        self.special = special
        self._special = dict(enumerate(special, 200))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        for number, special in self._special.items():
            text = text.replace(special, chr(number))
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        special = dict.fromkeys(self._special, "") if skip_special_tokens else self._special
        return "".join(special.get(i, chr(i)) for i in token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: bool) -> str:
        begin = "" if messages[0]["role"] == "system" else self._begin
        turns = [self._turns[m["role"]].format(m["content"]) for m in messages]
        return begin + "".join(turns) + self._reply


CHATS = {
    "like SmolLM2, with a system message of its own": Chatty(
        "<im>system\nYou are small.</im>\n",
        {role: f"<im>{role}\n{{}}</im>\n" for role in ("system", "user", "assistant")},
        "<im>assistant\n",
        ["<im>", "</im>"],
    ),
    "like Llama 3, with nothing before": Chatty(
        "",
        {role: f"<h>{role}</h>\n\n{{}}<eot>" for role in ("system", "user", "assistant")},
        "<h>assistant</h>\n\n",
        ["<h>", "</h>", "<eot>"],
    ),
    "like Mistral, in plain text, without a word for the reply": Chatty(
        "<s>",
        {"system": "<s>{}\n\n", "user": "[INST] {} [/INST]", "assistant": " {}</s>"},
        "",
        ["<s>", "</s>"],
    ),
}
SKY, GRASS = "Why is the sky blue?", "And the grass?"


def words_of(prompt: Any, tokenizer: Any) -> str:
    """What a view shows of a request that has no answer yet."""
    engine = oracle_engine(OracleModel(vocab_size=256), num_blocks=256, tokenizer=tokenizer)
    engine.add_request(prompt, greedy(2))
    (frame,) = EngineView(engine).timeline.document()["frames"]
    (words,) = [operation[5] for operation in frame["o"] if operation[0] == "q"]
    return str(words)


@pytest.mark.parametrize("tokenizer", CHATS.values(), ids=CHATS.keys())
def test_of_a_chat_the_last_question_is_shown(tokenizer: Chatty) -> None:
    sky, grass = ({"role": "user", "content": text} for text in (SKY, GRASS))
    rules = {"role": "system", "content": "Be short."}
    answer = {"role": "assistant", "content": "It scatters."}
    assert words_of([sky], tokenizer) == SKY
    assert words_of([sky, answer, grass], tokenizer) == GRASS
    assert words_of([rules, sky, answer, grass], tokenizer) == GRASS
    many = "one\n\ntwo, " * 50 + "three"
    assert words_of([{"role": "user", "content": many}], tokenizer) == f"… {many[-300:]}"


@pytest.mark.parametrize("tokenizer", CHATS.values(), ids=CHATS.keys())
def test_of_any_other_prompt_all_is_shown_but_special_tokens(tokenizer: Chatty) -> None:
    assert words_of("The first ten primes are", tokenizer) == "The first ten primes are"
    assert words_of([200, *b"Hello"], tokenizer) == "Hello"
    rules = words_of([{"role": "system", "content": "Be short."}], tokenizer)
    assert "Be short." in rules and not any(name in rules for name in tokenizer.special)
    assert words_of([200], tokenizer) == tokenizer.decode([200])  # rather than nothing


def test_a_prompt_is_shown_whatever_the_template_does() -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise ValueError("no template")

    for template in (refuse, lambda *_, **__: "", lambda *_, **__: "the first question"):
        tokenizer = ByteTokenizer()
        tokenizer.apply_chat_template = template  # type: ignore[attr-defined]
        assert words_of(SKY, tokenizer) == SKY
    assert words_of(SKY, ByteTokenizer()) == SKY
    assert words_of([1, 2, 3], None) == ""


# ------------------------------------------------------------------ bad logs


def lines() -> list[str]:
    from paged_engine.events import to_json

    return [to_json(event) for event in eventful().log]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: [*x[:50], x[50][:30]], "line 51: not an event"),
        (lambda x: ["hello", *x], "line 1: not an event"),
        (lambda x: [x[0].replace('"version":1', '"version":9'), *x[1:]], "line 1: .*version 9"),
        (lambda x: x[1:], "does not begin with engine_started"),
        (lambda x: [], "does not begin with engine_started"),
        (lambda x: [x[0], *x[20:]], "event 6 does not fit those before it"),
        (lambda x: [*x[:60], *x[30:40]], "event 61 does not fit .* comes too late"),
        (lambda x: [x[0].replace('"num_blocks":24', '"num_blocks":1'), *x[1:]], "does not fit"),
    ],
)
def test_a_log_that_is_none_is_refused_and_the_line_named(
    spoil: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(spoil(lines())) + "\n", encoding="utf-8")
    with pytest.raises(PagedEngineError, match=said):
        EngineView.replay(path)


def test_the_page_says_which_model_is_watched(tmp_path: Path) -> None:
    """From a folder by its name, in memory by its class, and a reader's own by its own."""
    folder = tmp_path / "a-tiny-model"
    tiny().save_pretrained(folder)
    engines = {
        "a-tiny-model": ContinuousEngine.from_pretrained(str(folder), device="cpu", num_blocks=8),
        "LlamaForCausalLM": ContinuousEngine(tiny(), config=EngineConfig(num_blocks=8)),
        "OracleModel": oracle_engine(),
    }
    for name, engine in engines.items():
        assert _about(engine).startswith(f"{name} · cpu ")
