"""What users hand over as prompts, made into token ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from paged_engine.errors import InvalidRequestError

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | Messages


def as_list(prompts: Any) -> list[Prompt]:
    """Several prompts, or one that stands for itself.

    A string, a list of token ids and a list of chat messages are each one prompt; a list of
    any of those is several.
    """
    if isinstance(prompts, str):
        return [prompts]
    prompts = _listed(prompts)
    if prompts and all(isinstance(p, Mapping) or _is_id(p) for p in prompts):
        return [prompts]
    return list(prompts)


def to_token_ids(prompt: Any, tokenizer: Any, vocab_size: int) -> list[int]:
    """The token ids of one prompt.

    Args:
        prompt: Text, chat messages (dicts with `role` and `content`) or token ids.
        tokenizer: One of transformers, or None when there is none.
        vocab_size: Ids must be below.

    Raises:
        InvalidRequestError: The prompt is empty or of another kind, has an id outside the
            vocabulary, or needs a tokenizer that is not there.
    """
    if isinstance(prompt, str):
        token_ids = _encode(_require(tokenizer, "a text"), prompt)
    else:
        prompt = _listed(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            token_ids = _apply_chat_template(_require(tokenizer, "chat messages"), prompt)
        else:
            token_ids = prompt
    if not token_ids:
        raise InvalidRequestError("the prompt is empty; expected at least one token")
    for token_id in token_ids:
        if not _is_id(token_id):
            raise InvalidRequestError(
                f"the prompt has {token_id!r} where a token id should be; expected text, token "
                f"ids, or chat messages such as [{{'role': 'user', 'content': '...'}}]"
            )
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"token id {token_id} is outside the vocabulary; expected 0 to {vocab_size - 1}"
            )
    return [operator.index(token_id) for token_id in token_ids]


def _encode(tokenizer: Any, text: str) -> list[int]:
    try:
        return _listed(tokenizer.encode(text))
    except (UnicodeError, TypeError) as error:  # tokenizers differ in how they say it
        raise InvalidRequestError(
            f"the tokenizer cannot take this text ({error}); expected valid Unicode"
        ) from error


def _apply_chat_template(tokenizer: Any, messages: list[Any]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise what they like
        raise InvalidRequestError(
            f"the chat template cannot take these messages ({error}); expected dicts with 'role' "
            f"and 'content', and a tokenizer that has a chat template"
        ) from error
    return _listed(tokenizer.encode(text, add_special_tokens=False))


def _require(tokenizer: Any, what: str) -> Any:
    if tokenizer is None:
        raise InvalidRequestError(
            f"the prompt is {what} but the engine has no tokenizer; give it one "
            f"(ContinuousEngine(model, tokenizer)) or give token ids"
        )
    return tokenizer


def _listed(values: Any) -> list[Any]:
    if hasattr(values, "tolist"):  # tensors and arrays
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise InvalidRequestError(
            f"the prompt is of type {type(values).__name__}; expected text, token ids, chat "
            f"messages, or a list of those"
        )
    return list(values)


def _is_id(value: Any) -> bool:
    if isinstance(value, bool) or getattr(value, "ndim", 0) > 0:
        return False  # arrays of any length claim to be integers
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
