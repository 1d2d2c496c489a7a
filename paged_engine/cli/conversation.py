"""A conversation with a model: what was said, and how it is made to fit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from paged_engine.cli.terminal import CommandError, note
from paged_engine.errors import InvalidRequestError
from paged_engine.prompts import to_token_ids

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.request import RequestOutput, SamplingParams

# Turns are forgotten until an answer may have this share of what can be served.
_ANSWER_SHARE = 4


class Conversation:
    """Messages and answers in turn.

    Every message is sent with all that was said before; the prefix cache still has the blocks of
    that, so only what is new is computed.

    Args:
        engine: With a tokenizer that has a chat template.
        params: For every answer; `max_tokens` is lowered where no more fits.
        system: What the model is told before everything else.

    Attributes:
        turns: Pairs of a message and its answer.
        last: The last output of the last answer.

    Raises:
        CommandError: There is no chat template.
    """

    def __init__(
        self, engine: ContinuousEngine, params: SamplingParams, system: str | None = None
    ) -> None:
        if not getattr(engine.tokenizer, "chat_template", None):
            raise CommandError(
                "this model has no chat template, so it was not made for conversations; use "
                "paged-engine generate, or a model that was made for them"
            )
        self.engine = engine
        self.params = params
        self.system = system
        self.turns: list[tuple[str, str]] = []
        self.last: RequestOutput | None = None

    def ask(self, message: str) -> Generator[str, None, None]:
        """The answer, piece by piece.  Closed early, what was said so far is the answer.

        Raises:
            InvalidRequestError: The message does not fit, or the template cannot take it; then
                it was not said.
        """
        turns, token_ids = self._fitting(message)
        if forgotten := len(self.turns) - len(turns):
            note(
                f"forgot the oldest {forgotten} of {len(self.turns)} turns: the conversation has "
                f"outgrown the {self._limit} tokens that model and block pool can serve"
            )
        self.turns = turns
        self.last = None
        most = min(self.params.max_tokens or self._limit, self._limit - len(token_ids))
        params = replace(self.params, max_tokens=most)
        said: list[str] = []
        outputs = cast(
            "Generator[RequestOutput, None, None]", self.engine.stream(token_ids, params)
        )
        try:
            with closing(outputs):
                for self.last in outputs:
                    said.append(self.last.completions[0].new_text)
                    yield said[-1]
        finally:
            if any(said):
                self.turns.append((message, "".join(said)))

    def _fitting(self, message: str) -> tuple[list[tuple[str, str]], list[int]]:
        """The latest turns that leave room for an answer, and the prompt they make."""
        room = min(self.params.max_tokens or self._limit, max(1, self._limit // _ANSWER_SHARE))
        for first in range(len(self.turns) + 1):
            turns = self.turns[first:]
            token_ids = self._encode(turns, message)
            if len(token_ids) + room <= self._limit:
                return turns, token_ids
        if len(token_ids) < self._limit:
            return turns, token_ids
        raise InvalidRequestError(
            f"the message has {len(token_ids)} tokens with what the chat template puts around it; "
            f"expected fewer than the {self._limit} that model and block pool can serve"
        )

    def _encode(self, turns: list[tuple[str, str]], message: str) -> list[int]:
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for asked, answered in turns:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": message})
        return to_token_ids(messages, self.engine.tokenizer, self.engine.core.runner.vocab_size)

    @property
    def _limit(self) -> int:
        limit = self.engine.config.max_servable_tokens
        assert limit is not None
        return limit
