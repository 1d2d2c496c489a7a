"""Notebook 01: the naive loop, and how much work it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paged_engine.lessons.baselines import naive_generate
from paged_engine.lessons.exercises import NotYet, call, exercise, expect
from paged_engine.models import tiny

PROMPT = (10, 11, 12, 13)
# Made here, before the clock of a check runs: that may take its time where nothing is loaded yet.
MODEL = tiny()
TRUTH = naive_generate(MODEL, PROMPT, 6).token_ids[0]


@exercise("01.1", "each token comes from everything known before it, and the loop ends in time")
def greedy_generate(generate: Callable[..., list[int]]) -> None:
    """Ids, end and passes, on a tiny model."""
    _run(generate, 6, ())
    _run(generate, 1, ())
    _run(generate, 6, (TRUTH[2],))
    _run(generate, 6, {TRUTH[0], 7})
    for token in (PROMPT[0], PROMPT[-1]):  # an end in the prompt is no end
        _run(generate, 6, (token,))


class Watched:
    """A model that notes what each pass was given, and does not go on for ever.

    Args:
        model: The model.
        most: Passes that are needed.
        when: For what input, in words.
    """

    def __init__(self, model: Any, most: int, when: str) -> None:
        self.model = model
        self.most = most
        self.when = when
        self.passes: list[list[int]] = []

    def __call__(self, input_ids: Any, **options: Any) -> Any:
        if len(self.passes) == self.most:
            raise NotYet(
                f"an end after {_times(self.most, 'pass')}", "one more", self.when,
                "stop at max_tokens new tokens, the one from the first pass included, or "
                "right after an end token",
            )  # fmt: skip
        if getattr(input_ids, "ndim", None) != 2:
            raise NotYet(
                "a tensor with two dimensions, a batch of one", _form(input_ids), self.when,
                "the known tokens stand in a list of their own: torch.tensor([known])",
            )  # fmt: skip
        result = self.model(input_ids, **options)
        self.passes.append(input_ids[0].tolist())
        return result

    def __getattr__(self, name: str) -> Any:
        if name == "generate":
            hint = "call model(...) once for each new token"
            raise NotYet("a loop of your own", "model.generate", self.when, hint)
        return getattr(self.model, name)


def _run(generate: Callable[..., Any], max_tokens: int, ends: Any) -> None:
    right = TRUTH[:max_tokens]
    at = next((i for i, token in enumerate(right) if token in ends), len(right))
    right = right[: at + 1]
    when = f"With prompt {list(PROMPT)}, max_tokens={max_tokens}"
    if ends:
        when += f", eos_token_ids={ends}"
    model = Watched(MODEL, len(right), f"{when} on a tiny model")
    prompt = list(PROMPT)
    got = generate(model, prompt, max_tokens, *([ends] if ends else []))
    if prompt != list(PROMPT):
        hint = "work on a copy, list(prompt): whoever called you still needs it"
        raise NotYet(f"the prompt left as it was, {list(PROMPT)}", prompt, model.when, hint)
    _require_ids(got, right, model.when)
    if got != right:
        raise NotYet(right, got, model.when, _hint(got, right, ends))
    sizes, wanted = list(map(len, model.passes)), [len(PROMPT) + i for i in range(len(right))]
    if sizes != wanted:
        hint = "each pass takes everything known; to keep what was computed is notebook 02"
        raise NotYet(f"passes over {wanted} tokens", sizes, model.when, hint)


def _require_ids(got: Any, right: list[int], when: str) -> None:
    hint = "a list of plain integers: int(...) makes one of a tensor with one number"
    if isinstance(got, list):
        for token in got:
            if type(token) is not int:
                raise NotYet(right, f"a list with a {type(token).__name__}", when, hint)
    else:
        expect(got, right, when, "" if got is None else "return a list of plain integers")


def _hint(got: list[int], right: list[int], ends: Any) -> str:
    """What a wrong answer looks like."""
    rows = _rows()
    if got == [*PROMPT, *right]:
        return "only the new tokens: leave the prompt out"
    if ends and got == right[:-1]:
        return "the token that ends it is part of the answer"
    if len(got) > 1 and set(got) == {right[0]}:
        return "always the same token: does a pass see what the one before it gave?"
    if got and got[0] in rows[:-1]:
        row = rows.index(got[0])
        return f"this is what row {row} of the prompt's logits says; what comes next is in the last"
    if len(got) > len(right):
        return "count what you have before the next pass, and look for an end token after each"
    if len(got) < len(right):
        return "only a new token can end it, or max_tokens of them"
    return "the newest token belongs at the end of what is known"


@exercise("01.2", "it counts every token of every pass, for short and for long answers")
def forward_tokens(count: Callable[[int, int], int]) -> None:
    """Counts, against a sum written out."""
    for num_prompt, num_new in ((4, 6), (6, 1), (1, 1), (6, 24), (6, 128), (1000, 64)):
        when = f"With {num_prompt} prompt tokens and {num_new} new"
        right = sum(num_prompt + i for i in range(num_new))
        hint = f"the first pass takes {num_prompt}, each later one a token more than the last"
        got = call(count, num_prompt, num_new, when=when)
        _require_int(got, right, when)
        if got == right + num_new != right:
            hint = "the first pass takes the prompt alone: no new token is known yet"
        elif got == right + num_prompt + num_new:
            hint = f"there are {_times(num_new, 'pass')}: none comes after the last token"
        elif got == num_prompt * num_new:
            hint = "what is known grows: a pass takes the new tokens too"
        elif got == num_prompt + num_new - 1:
            hint = "this counts each token once; the naive loop computes it in every pass again"
        expect(got, right, when, hint)


@exercise("01.3", "each token once, and the last one not at all")
def needed_tokens(count: Callable[[int, int], int]) -> None:
    """Counts, against tokens written out."""
    for num_prompt, num_new in ((4, 6), (6, 1), (1, 1), (6, 24), (1000, 64)):
        when = f"With {num_prompt} prompt tokens and {num_new} new"
        right = len(range(num_prompt + num_new)[:-1])
        hint = "which of them does a pass have to take in, to yield the next?"
        got = call(count, num_prompt, num_new, when=when)
        _require_int(got, right, when)
        if got == right + 1:
            hint = "the last token is handed out; no pass takes it in"
        expect(got, right, when, hint)


def _require_int(got: Any, right: int, when: str) -> None:
    if got is not None and type(got) is not int:
        hint = "a count is an int; // divides without making a float"
        raise NotYet(right, f"{got!r}, a {type(got).__name__}", when, hint)


def _form(given: Any) -> str:
    """What a pass was given, in words."""
    if not hasattr(given, "ndim"):
        return f"a {type(given).__name__}"
    return f"a tensor with {given.ndim} dimension{'' if given.ndim == 1 else 's'}"


def _times(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}es"


def _rows() -> list[int]:
    """What each row of the prompt's logits says."""
    prompts = [PROMPT[: i + 1] for i in range(len(PROMPT))]
    return [naive_generate(MODEL, prompt, 1).token_ids[0][0] for prompt in prompts]
