"""What counts as one prompt, what as several, and what as none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paged_engine.errors import InvalidRequestError
from paged_engine.prompts import as_list, to_token_ids
from tests.helpers.fakes import ByteTokenizer

CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "prompt",
    [
        "text",
        "",
        [1, 2],
        (1, 2),
        range(3),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        [np.int64(1), torch.tensor(2)],
        CHAT,
    ],
    ids=repr,
)
def test_one_prompt(prompt: Any) -> None:
    (only,) = as_list(prompt)
    assert only is prompt or list(only) == [
        int(x) if not isinstance(x, dict) else x for x in prompt
    ]


@pytest.mark.parametrize(
    ("prompts", "number"),
    [
        (["a", "b"], 2),
        ([[1], [2], [3]], 3),
        ([CHAT, CHAT], 2),
        ([CHAT], 1),
        (["a", [1], CHAT], 3),
        (np.ones((2, 3), int), 2),
        (torch.ones(1, 3, dtype=torch.long), 1),
        ([np.array([1, 2]), np.array([3])], 2),
        ([torch.tensor([1, 2])], 1),
        ([torch.tensor([1])], 1),
        ([torch.tensor([1]), torch.tensor([2])], 2),
        ([], 0),
    ],
    ids=repr,
)
def test_several_prompts(prompts: Any, number: int) -> None:
    assert len(as_list(prompts)) == number


def test_a_list_of_a_vector_is_not_a_vector() -> None:
    (prompt,) = as_list([torch.tensor([7])])
    assert to_token_ids(prompt, None, 50) == [7]


@pytest.mark.parametrize("prompts", [None, 5, 2.5, b"ab", {1: 2}, {1}, iter([1]), object()])
def test_what_is_no_list_of_prompts_is_refused(prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected text, token ids, chat messages, or a"):
        as_list(prompts)


def test_ids_become_plain_integers() -> None:
    for prompt in ([np.int32(3), 4], torch.tensor([3, 4]), np.array([3, 4], dtype=np.uint8)):
        token_ids = to_token_ids(prompt, None, 5)
        assert token_ids == [3, 4]
        assert all(type(t) is int for t in token_ids)


def test_the_prompt_of_the_caller_is_not_kept() -> None:
    prompt = [1, 2]
    token_ids = to_token_ids(prompt, None, 5)
    token_ids.append(3)
    assert prompt == [1, 2]


@pytest.mark.parametrize(("token_id", "ok"), [(0, True), (4, True), (5, False), (-1, False)])
def test_ids_are_of_the_vocabulary(token_id: int, ok: bool) -> None:
    if ok:
        assert to_token_ids([token_id], None, 5) == [token_id]
        return
    with pytest.raises(InvalidRequestError, match=rf"token id {token_id} is outside .* 0 to 4"):
        to_token_ids([token_id], None, 5)


def test_a_tokenizer_with_ids_beyond_the_model_is_found_out() -> None:
    with pytest.raises(InvalidRequestError, match="token id 122 is outside the vocabulary"):
        to_token_ids("z", ByteTokenizer(), 100)


class Encoding(ByteTokenizer):
    """Returns tensors, and takes chat messages."""

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        return torch.tensor([1] * add_special_tokens + list(text.encode()))

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        if any("role" not in m for m in messages):
            raise KeyError("role")
        return "".join(m["content"] for m in messages)


def test_text_gets_special_tokens_and_a_filled_in_template_gets_no_second_ones() -> None:
    assert to_token_ids("ab", Encoding(), 256) == [1, 97, 98]
    assert to_token_ids([{"role": "user", "content": "ab"}], Encoding(), 256) == [97, 98]


@pytest.mark.parametrize("messages", [[{"content": "x"}], [{}], [{"role": "user"}, 3]])
def test_messages_that_the_template_refuses_are_a_bad_request(messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"chat template cannot take .*'role'.*'content'"):
        to_token_ids(messages, Encoding(), 256)


def test_empty_messages_are_an_empty_prompt() -> None:
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        to_token_ids([{"role": "user", "content": ""}], Encoding(), 256)
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        to_token_ids([], Encoding(), 256)
