"""What the series starts from, for later notebooks to measure against.

Notebooks 01 to 03 build each of these by hand; here they are as a reader would keep them.  All take
a causal LM of transformers, generate greedily, and say how much work it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paged_engine.errors import InvalidRequestError


@dataclass
class BaselineRun:
    """What a baseline generated and what it took.

    Attributes:
        token_ids: For each prompt its new tokens, the one that ended it included.
        num_steps: Passes through the model.
        num_computed_tokens: Tokens that went through it, padding included.
        num_slot_steps: Rows of all batches, summed over their steps.
        num_wasted_slot_steps: Those of rows that were finished already.
        num_pad_tokens: Computed tokens that were padding.
    """

    token_ids: list[list[int]] = field(default_factory=list)
    num_steps: int = 0
    num_computed_tokens: int = 0
    num_slot_steps: int = 0
    num_wasted_slot_steps: int = 0
    num_pad_tokens: int = 0


@torch.inference_mode()
def naive_generate(
    model: Any, prompt: Sequence[int], max_tokens: int, eos_token_ids: Collection[int] = ()
) -> BaselineRun:
    """Everything again for every token (notebook 01).

    Raises:
        InvalidRequestError: The prompt is empty or `max_tokens` below 1.
    """
    _check([prompt], [max_tokens])
    run = BaselineRun([[]])
    known = list(prompt)
    while len(run.token_ids[0]) < max_tokens:
        logits = model(torch.tensor([known], device=model.device), use_cache=False).logits
        run.num_steps += 1
        run.num_slot_steps += 1
        run.num_computed_tokens += len(known)
        token = int(logits[0, -1].argmax())
        run.token_ids[0].append(token)
        known.append(token)
        if token in eos_token_ids:
            break
    return run


def cached_generate(
    model: Any, prompt: Sequence[int], max_tokens: int, eos_token_ids: Collection[int] = ()
) -> BaselineRun:
    """The prompt once, then one token a step, with keys and values kept (notebook 02)."""
    return static_generate(model, [prompt], [max_tokens], 1, eos_token_ids)


@torch.inference_mode()
def static_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    batch_size: int,
    eos_token_ids: Collection[int] = (),
) -> BaselineRun:
    """Batches that stay together until their longest member is done (notebook 03).

    Args:
        model: A causal LM of transformers.
        prompts, max_tokens: One each; prompts are padded on the left.
        batch_size: The most requests in one batch.
        eos_token_ids: Tokens that end a request.

    Raises:
        InvalidRequestError: A prompt is empty, or a limit below 1.
    """
    _check(prompts, max_tokens)
    if batch_size < 1:
        raise InvalidRequestError(f"batch_size is {batch_size}; expected at least 1")
    run = BaselineRun()
    for start in range(0, len(prompts), batch_size):
        end = start + batch_size
        _one_batch(run, model, prompts[start:end], max_tokens[start:end], eos_token_ids)
    return run


def padded(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts as rows of one length, padded on the left, and a mask: 1 for a token, 0 for a pad."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    return ids, [[0] * pad + [1] * (longest - pad) for pad in pads]


def _one_batch(
    run: BaselineRun,
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    eos_token_ids: Collection[int],
) -> None:
    rows, mask_rows = padded(prompts)
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor(mask_rows, device=model.device)
    cache, done = None, [False] * len(prompts)
    new: list[list[int]] = [[] for _ in prompts]
    run.num_pad_tokens += ids.numel() - sum(map(len, prompts))
    while not all(done):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        run.num_steps += 1
        run.num_computed_tokens += ids.numel()
        run.num_slot_steps += len(prompts)
        run.num_wasted_slot_steps += sum(done)
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        for i, token in enumerate(ids[:, 0].tolist()):
            if not done[i]:
                new[i].append(token)
                done[i] = len(new[i]) >= max_tokens[i] or token in eos_token_ids
    run.token_ids += new


def _check(prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> None:
    if len(prompts) != len(max_tokens):
        raise InvalidRequestError(
            f"{len(prompts)} prompts and {len(max_tokens)} limits; expected one limit a prompt"
        )
    for prompt, limit in zip(prompts, max_tokens, strict=True):
        if not len(prompt):
            raise InvalidRequestError("a prompt is empty; expected at least one token")
        if limit < 1:
            raise InvalidRequestError(f"max_tokens is {limit}; expected at least 1")
