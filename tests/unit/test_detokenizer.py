"""Text grows by what is certain: complete, never early, never taken back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models

from paged_engine.detokenizer import IncrementalDetokenizer
from tests.helpers.fakes import ByteTokenizer

# Bytes that begin, continue, end or break characters, far oftener than chance would have them.
TRICKY = bytes([0x41, 0x80, 0xA9, 0xAC, 0xBF, 0xC3, 0xE2, 0x82, 0xEF, 0xBD, 0xF0, 0x9F, 0xFF])


class PieceTokenizer:
    """Each token is a piece of a byte string, as in a byte-level BPE."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self.pieces[i] for i in token_ids).decode("utf-8", errors="replace")


def feed(
    tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str] = ()
) -> tuple[list[str], IncrementalDetokenizer]:
    """What each token yields, and at last `finish`; stops being fed where the engine would."""
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    pieces = []
    for token_id in token_ids:
        before = detokenizer.text
        pieces.append(detokenizer.push(token_id))
        assert detokenizer.text == before + pieces[-1], "something was taken back"
        if detokenizer.stopped_by is not None:
            break
    before = detokenizer.text
    pieces.append(detokenizer.finish())
    assert detokenizer.text == before + pieces[-1], "something was taken back"
    return pieces, detokenizer


@given(st.text())
@example("añ€😀\ufffd")
def test_pieces_of_a_text_make_the_text_and_no_character_is_ever_halved(text: str) -> None:
    pieces, detokenizer = feed(ByteTokenizer(), list(text.encode()))
    assert "".join(pieces) == detokenizer.text == text
    assert sum(p.count("\ufffd") for p in pieces) == text.count("\ufffd")


@given(st.lists(st.sampled_from(TRICKY) | st.integers(0, 255), max_size=60).map(bytes))
@example(b"\xff" * 8 + "€".encode())
@example(b"\xff" * 7 + "😀".encode() + b"\xff" * 9 + "€".encode() + b"\xe2\x82")
@example(b"\xf0\x9f\x98" * 5 + b"A")
@example(b"\xe2\x82\xe2\x82\xe2\x82\xe2\x82\xe2\x82\xac")
@example("\ufffd".encode() * 12 + b"\xe2\x82")
def test_pieces_of_any_bytes_make_what_all_of_them_decode_to(data: bytes) -> None:
    pieces, _ = feed(ByteTokenizer(), list(data))
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


@given(st.lists(st.text("aé€😀", min_size=1, max_size=3), max_size=12), st.randoms())
def test_tokens_may_begin_and_end_inside_characters(words: list[str], random: Any) -> None:
    data = "".join(words).encode()
    cuts = sorted({0, len(data), *(random.randrange(len(data) + 1) for _ in range(8))})
    tokens = [data[a:b] for a, b in itertools.pairwise(cuts)]
    pieces, _ = feed(PieceTokenizer(tokens), range(len(tokens)))
    assert "".join(pieces) == data.decode()
    assert "\ufffd" not in "".join(pieces)


pieces_of_bytes = st.lists(st.sampled_from(TRICKY), min_size=1, max_size=3).map(bytes)


@given(st.lists(pieces_of_bytes, max_size=30))
@example([b"\xff"] * 5 + [b"\xe2", b"\x82\xac\xff", b"\xff", b"\xff"])
def test_pieces_of_any_tokens_make_what_all_of_them_decode_to(tokens: list[bytes]) -> None:
    pieces, _ = feed(PieceTokenizer(tokens), range(len(tokens)))
    assert "".join(pieces) == b"".join(tokens).decode("utf-8", errors="replace")


@given(st.lists(st.sampled_from(TRICKY), max_size=40).map(bytes))
def test_every_whole_character_is_handed_out_with_its_last_byte(data: bytes) -> None:
    """Bytes that are no character may be held for a while, and only those."""
    detokenizer = IncrementalDetokenizer(ByteTokenizer())
    for end, token_id in enumerate(data, start=1):
        detokenizer.push(token_id)
        so_far = data[:end].decode("utf-8", errors="replace")
        assert so_far.startswith(detokenizer.text)
        if not so_far.endswith("\ufffd"):
            assert detokenizer.text == so_far


@given(st.integers(0, 200))
def test_bytes_that_never_become_a_character_are_not_held_forever(number: int) -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer())
    for _ in range(number):
        detokenizer.push(0xFF)
    assert number - len(detokenizer.text) <= 8


# ---------------------------------------------------------------------- stop strings


def brute_force(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string to be complete as characters arrive one by one.

    Of several complete with the same character the one that begins first.
    """
    for end in range(len(text) + 1):
        found = [(at, s) for s in stop if (at := text[:end].find(s)) >= 0]
        if found:
            at, which = min(found)
            return text[:at], which
    return text, None


stops = st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=4)


@given(st.text("ab€", max_size=20), stops)
@example("aab", ["ab"])
@example("xab", ["ab", "b"])
@example("abab€", ["aba€", "bab"])
@example("€€", ["€€€"])
def test_text_ends_right_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, detokenizer = feed(ByteTokenizer(), list(text.encode()), stop)
    assert ("".join(pieces), detokenizer.stopped_by) == brute_force(text, stop)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=6), stops)
def test_stop_strings_are_found_across_and_within_longer_tokens(
    words: list[str], stop: list[str]
) -> None:
    """Within one token all its characters arrive at once: the earliest stop string counts."""
    tokens = [word.encode() for word in words]
    pieces, detokenizer = feed(PieceTokenizer(tokens), range(len(tokens)), stop)
    wanted: tuple[str, str | None] = ("".join(words), None)
    for end in range(1, len(words) + 1):
        so_far = "".join(words[:end])
        if found := [(at, s) for s in stop if (at := so_far.find(s)) >= 0]:
            wanted = (so_far[: min(found)[0]], min(found)[1])
            break
    assert ("".join(pieces), detokenizer.stopped_by) == wanted


def test_what_may_be_a_stop_string_is_held_back_until_it_is_not() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), ["STOP"])
    assert [detokenizer.push(b) for b in b"aSTSTOx"] == ["a", "", "", "ST", "", "", "STOx"]
    assert [detokenizer.push(b) for b in b"ST"] == ["", ""]
    assert detokenizer.finish() == "ST"
    assert detokenizer.stopped_by is None


def test_a_stop_string_may_end_in_the_middle_of_what_a_token_says() -> None:
    detokenizer = IncrementalDetokenizer(PieceTokenizer([b"one ST", b"OP two"]), ["STOP"])
    assert [detokenizer.push(0), detokenizer.push(1)] == ["one ", ""]
    assert (detokenizer.text, detokenizer.stopped_by) == ("one ", "STOP")
    assert detokenizer.finish() == ""


def test_a_stop_string_of_several_bytes_is_found_with_its_last_one() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), ["€"])
    assert [detokenizer.push(b) for b in "é€".encode()] == ["", "é", "", "", ""]
    assert (detokenizer.text, detokenizer.stopped_by) == ("é", "€")


def test_before_it_may_stop_a_stop_string_is_text() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), ["ab"])
    text = "".join(detokenizer.push(b, may_stop=False) for b in b"abxab")
    assert (text, detokenizer.stopped_by) == ("abxab", None)
    assert "".join(detokenizer.push(b) for b in b"yab") == "y"
    assert detokenizer.stopped_by == "ab"


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), ["b"])
    assert "".join(detokenizer.push(b) for b in b"abcd") + detokenizer.finish() == "a"


# ---------------------------------------------------------------------- other tokenizers


class _Words:
    """The words of a sentencepiece tokenizer: the first word of a text has no space."""

    def __init__(self) -> None:
        words = ["▁Hello", "▁world", "!", "<end>", "lo"]
        self._tokenizer = HFTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}))
        self._tokenizer.decoder = decoders.Metaspace()
        self._tokenizer.add_special_tokens(["<end>"])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize(
    "token_ids",
    [[0, 1, 2], [3, 0, 1], [0, 3, 1, 2], [0, 3, 3, 3, 1], [0, 4, 1], [3, 3], []],
    ids=str,
)
def test_spaces_survive_tokens_that_say_nothing(token_ids: list[int]) -> None:
    pieces, _ = feed(_Words(), token_ids)
    assert "".join(pieces) == _Words().decode(token_ids)
