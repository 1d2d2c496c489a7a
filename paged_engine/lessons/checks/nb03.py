"""Notebook 03: padding, positions, waste, and static batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from paged_engine.lessons.exercises import NotYet, call, exercise, expect

Rows = list[list[int]]


@exercise("03.1", "every row is equally long, tokens at its right end, and the mask tells which")
def pad_left(pad: Callable[[Rows, int], tuple[Rows, Rows]]) -> None:
    """Rectangle and mask."""
    for prompts, pad_id in (
        ([[5, 6, 7], [8], [9, 10]], 0),
        ([[8], [5, 6, 7], [9, 10]], 9),  # the pad's id is in a prompt as well
        ([[4, 4], [4, 5]], 4),
        ([[3, 1, 2]], 0),
    ):
        when = f"With pad_left({prompts}, {pad_id})"
        result = call(pad, prompts, pad_id, when=when)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise NotYet("two things, ids and mask", result, when, "return ids, mask")
        ids, mask = result
        width = max(map(len, prompts))
        right = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        marks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        on_right = [prompt + [pad_id] * (width - len(prompt)) for prompt in prompts]
        hint = "each row as long as the longest prompt, the pads in front"
        if ids == on_right != right:
            hint = "these pads are on the right; the newest token must be last in its row"
        expect(ids, right, f"{when}, ids", hint)
        hint = "0 for a pad, 1 for a token"
        if mask == [[int(token != pad_id) for token in row] for row in right]:
            hint = "a prompt may contain the pad's id; count how many pads you put there"
        expect(_plain(mask), marks, f"{when}, mask", hint)


@exercise("03.2", "each prompt begins at position 0, however many pads stand before it")
def positions(places_of: Callable[[Rows], Rows]) -> None:
    """Places without pads."""
    for mask in (
        [[1, 1, 1], [0, 0, 1], [0, 1, 1]],
        [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],  # grown by a few decode steps
        [[1]],
    ):
        when = f"With positions({mask})"
        places = _plain(call(places_of, mask, when=when))
        if not isinstance(places, list) or list(map(_length, places)) != list(map(len, mask)):
            raise NotYet("a list of rows, each as long as the mask's", places, when)
        right = [[max(0, sum(row[: i + 1]) - 1) for i in range(len(row))] for row in mask]
        for row, given, wanted in zip(mask, places, right, strict=True):
            pads = row.count(0)
            hint = "count only the ones of the mask that are to its left"
            if given == list(range(len(row))):
                hint = "the pads were counted too: the first token of a prompt is at position 0"
            elif given[pads:] == [place + 1 for place in wanted[pads:]]:
                hint = "it begins at 1; the first token is at position 0"
            expect(given[pads:], wanted[pads:], f"{when}, the tokens of {row}", hint)
            if any(type(place) is not int or not 0 <= place < len(row) for place in given[:pads]):
                hint = "nobody looks at a pad's position, but a table of positions has no row -1"
                raise NotYet([0] * pads, given[:pads], f"{when}, the pads of {row}", hint)


@exercise("03.3", "every batch is as long as its longest member, and only its own rows are counted")
def wasted_slot_steps(count: Callable[[Sequence[int], int], int]) -> None:
    """The count, also for a last batch that is smaller."""
    for lengths, batch_size, right, hint in (
        ([3, 5], 2, 2, "the first row waits for the second: 5 - 3"),
        ([7], 1, 0, "who is alone waits for nobody"),
        ([5, 2, 9], 1, 0, "in a batch of one nobody waits"),
        ([4, 8, 8, 32], 4, 76, "32 steps of 4 rows, less what they got"),
        ([3, 5, 10, 4], 2, 8, "each batch has its own longest member"),
        ([10, 3, 4, 9], 2, 12, "batches are made in order of arrival: nothing is sorted here"),
        ([3, 5, 10], 2, 2, "the last batch has one row; an empty seat is not computed"),
    ):
        when = f"With wasted_slot_steps({lengths}, {batch_size})"
        got = call(count, lengths, batch_size, when=when)
        if isinstance(got, bool) or not isinstance(got, int):
            raise NotYet(right, f"{got!r}, a {type(got).__name__}", when, "a count is an int")
        if got == _slot_steps(lengths, batch_size) != right:
            hint = "these are all slot-steps; take away those that gave a token"
        elif got != right and got in _if_sorted(lengths, batch_size):
            hint = "batches are made in order of arrival: nothing is sorted here"
        expect(got, right, when, hint)


@exercise("03.4", "each token is the one that the prompt gets alone, and nothing is computed twice")
def static_batches(generate: Callable[..., Rows]) -> None:
    """Tokens as alone, in as many passes as it takes and no more."""
    for family in ("llama", "gpt2"):
        _held_against_solo(generate, family, [4, 2, 6], 2, ())
        _held_against_solo(generate, family, [4, 2, 6], 4, ())
    alone = _solo("llama", 6)
    end = alone[0][2]  # the first request ends early, by itself
    _held_against_solo(generate, "llama", [6, 5, 6], 3, (end,))
    _held_against_solo(generate, "llama", [6, 2, 3], 3, (end,))  # and with it its batch


PROMPTS = [[31, 7, 52, 11, 90, 45], [60, 9], [14, 77, 23, 8]]


class Counted:
    """A model that notes how large each pass was, and does not go on for ever."""

    def __init__(self, model: Any, most: int, are_several: bool) -> None:
        self.model = model
        self.are_several = are_several
        self.most = most
        self.shapes: list[tuple[int, ...]] = []
        self.device = model.device
        self.config = model.config

    def __call__(self, input_ids: Any, **options: Any) -> Any:
        self.shapes.append(tuple(input_ids.shape))
        if len(self.shapes) > self.most:
            alone = self.are_several and all(rows == 1 for rows, *_ in self.shapes)
            hint = "a batch ends when all its rows are done; when is one done?"
            if alone:
                hint = "each pass had one row; all prompts of a batch go in together"
            raise NotYet(f"{self.most} passes in all", "one more", hint=hint)
        return self.model(input_ids, **options)


def _held_against_solo(
    generate: Callable[..., Rows],
    family: str,
    limits: list[int],
    batch_size: int,
    ends: tuple[int, ...],
) -> None:
    right = [
        _until(tokens[:limit], ends) for tokens, limit in zip(_solo(family, 6), limits, strict=True)
    ]
    lengths = list(map(len, right))
    batches = [range(i, min(i + batch_size, 3)) for i in range(0, 3, batch_size)]
    steps = [max(lengths[i] for i in batch) for batch in batches]
    when = (
        f"With prompts of 6, 2 and 4 tokens, max_tokens {limits}, batch_size {batch_size}"
        f"{f', {ends[0]} as end' if ends else ''}, on a tiny {family}"
    )
    model = Counted(_tiny(family), sum(steps), are_several=batch_size > 1)
    prompts = [list(prompt) for prompt in PROMPTS]
    try:
        got = generate(model, prompts, list(limits), batch_size, *([ends] if ends else []))
    except NotYet as problem:
        raise NotYet(problem.expected, problem.got, when, problem.hint) from None
    if prompts != PROMPTS:
        raise NotYet("prompts left as they were", prompts, when, "work on a copy")
    if not isinstance(got, list) or list(map(_length, got)) != lengths:
        found = list(map(_length, got)) if isinstance(got, list) else got
        hint = "a row that is done goes on being computed, but what it says is not kept"
        if ends:
            hint = "a token of eos_token_ids ends its row, and is kept"
        elif isinstance(found, list) and any(n < m for n, m in zip(found, lengths, strict=False)):
            hint = "a batch goes on until all its rows are done, and rows keep their order"
        raise NotYet(f"answers of {lengths} tokens, in order of arrival", found, when, hint)
    if any(rows > batch_size for rows, _ in model.shapes):
        raise NotYet(f"at most {batch_size} rows", f"{model.shapes[0][0]} rows in a pass", when)
    for i, (tokens, wanted) in enumerate(zip(got, right, strict=True)):
        hint = "is the mask handed over, and does it grow with each new token?"
        if family == "gpt2":
            hint = "with rotary positions it was right; here each step needs positions(mask)"
        elif tokens[0] == wanted[0]:
            hint = "its first token is right: look at ids, mask and cache of the steps after it"
        expect(list(map(int, tokens)), wanted, f"{when}, prompt {i}", hint)
    if len(model.shapes) < sum(steps):
        raise NotYet(f"{sum(steps)} passes", f"{len(model.shapes)}", when, "one batch at a time")
    wide = [columns for _, columns in model.shapes if columns > 1]
    if len(wide) > len(batches):
        hint = "after the first pass of a batch only the new tokens go in: keep the cache"
        raise NotYet(f"{len(batches)} passes over prompts", f"{len(wide)}", when, hint)


def _until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    at = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: at + 1]


@cache
def _tiny(family: str) -> Any:
    from paged_engine.models import tiny

    return tiny(family)


@cache
def _solo(family: str, most: int) -> Rows:
    """What each prompt gets alone: a fixed fact of these weights, computed without padding."""
    from paged_engine.lessons.baselines import naive_generate

    return [naive_generate(_tiny(family), p, most).token_ids[0] for p in PROMPTS]


def _slot_steps(lengths: Sequence[int], batch_size: int) -> int:
    starts = range(0, len(lengths), batch_size)
    batches = [lengths[i : i + batch_size] for i in starts]
    return sum(max(batch) * len(batch) for batch in batches)


def _if_sorted(lengths: Sequence[int], batch_size: int) -> list[int]:
    """What is wasted by who sorts the lengths first, in one direction or the other."""
    both = sorted(lengths), sorted(lengths, reverse=True)
    return [_slot_steps(order, batch_size) - sum(order) for order in both]


def _plain(rows: Any) -> Any:
    """Tensors, tuples and booleans as lists of integers."""
    if hasattr(rows, "tolist"):
        rows = rows.tolist()
    if not isinstance(rows, (list, tuple)):
        return rows
    plain = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    return [
        [int(value) if isinstance(value, bool) else value for value in row]
        if isinstance(row, (list, tuple))
        else row
        for row in plain
    ]


def _length(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else -1
