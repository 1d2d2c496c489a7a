"""Text from tokens, a few at a time.

A token is bytes, not characters: one character may span several tokens, and what a token
reads as may depend on the one before it.  So a little context is decoded anew with every
token and only what became certain is handed out.  Text that may be the beginning of a stop
string is held back too, so that nothing handed out ever has to be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no character (yet)


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ...) -> Any: ...


class IncrementalDetokenizer:
    """The text of one request as it grows.

    Args:
        tokenizer: Anything with `decode`.
        stop: Strings that end the text.

    Attributes:
        text: What was handed out so far.
        stopped_by: The stop string that was found, if any.
    """

    # An incomplete character has at most three bytes, so at most three tokens; a few more
    # and it is not going to be one.
    _MOST_INCOMPLETE = 3
    _MOST_HELD_TOKENS = 8

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        self._context = 0  # tokens from here on are decoded again
        self._read = 0  # tokens before here are in the text
        self._held = ""
        self.text = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Take one token; returns the text that became certain.

        With `may_stop` False, stop strings are not looked for yet.
        """
        self._token_ids.append(token_id)
        end = len(self._token_ids)
        text = self._decode(self._token_ids[self._context :])
        if text.endswith(_INCOMPLETE):
            if end - self._read <= self._MOST_HELD_TOKENS:
                return ""
            end -= self._MOST_INCOMPLETE  # what these are part of may still become a character
            whole = text
            while not whole.startswith(text := self._decode(self._token_ids[self._context : end])):
                end -= 1
        return self._hand_out(self._read_until(end, text), may_stop)

    def finish(self, *, may_stop: bool = True) -> str:
        """No more tokens will come; returns the rest of the text."""
        rest = self._decode(self._token_ids[self._context :])
        new = self._hand_out(self._read_until(len(self._token_ids), rest), may_stop)
        if self.stopped_by is None:
            new += self._held
            self.text += self._held
        self._held = ""
        return new

    def _read_until(self, end: int, after: str) -> str:
        """The text of the tokens not read yet, up to `end`; `after` has the context before it."""
        before = self._decode(self._token_ids[self._context : self._read])
        if len(after) > len(before):  # else they say nothing, and are no context for others
            self._context = self._read
        self._read = end
        return after[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _hand_out(self, decoded: str, may_stop: bool) -> str:
        if self.stopped_by is not None:
            return ""
        pending = self._held + decoded
        found = [(at, s) for s in self._stop if (at := pending.find(s)) >= 0] if may_stop else []
        if found:
            at, self.stopped_by = min(found)
            new, self._held = pending[:at], ""
        else:
            certain = len(pending) - self._undecided(pending)
            new, self._held = pending[:certain], pending[certain:]
        self.text += new
        return new

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string may begin."""
        most = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(most, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
