"""Notebook 03: the solutions, as the notebook shows them."""

# mypy: ignore-errors

from __future__ import annotations

import torch

PAD = 9


@torch.inference_mode()
def forward(model, ids, mask=None, places=None, cache=None):
    """One pass: the logits of the last column, and the cache."""
    ids = torch.tensor(ids)
    if mask is not None:
        mask = torch.tensor(mask)
    if places is not None:
        places = torch.tensor(places)[:, -ids.shape[1] :]  # of the new columns
    out = model(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
    return out.logits[:, -1], out.past_key_values


def pad_left(prompts, pad_id):
    """Rows of one length, filled up on the left, and a mask: 1 a token, 0 a pad."""
    width = max(len(prompt) for prompt in prompts)
    ids, mask = [], []
    for prompt in prompts:
        missing = width - len(prompt)
        ids.append([pad_id] * missing + list(prompt))
        mask.append([0] * missing + [1] * len(prompt))
    return ids, mask


def positions(mask):
    """The place of each token in its own prompt: 0, 1, 2, ..., and 0 under a pad."""
    places = []
    for row in mask:
        pads = row.count(0)
        places.append([max(0, column - pads) for column in range(len(row))])
    return places


def wasted_slot_steps(lengths, batch_size):
    """Slot-steps that batches compute for rows which are finished already."""
    wasted = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        wasted += max(batch) * len(batch) - sum(batch)
    return wasted


def static_batches(model, prompts, max_tokens, batch_size, eos_token_ids=()):
    """The new tokens of each prompt, from batches that stay together to the end."""
    answers = []
    for start in range(0, len(prompts), batch_size):
        limits = max_tokens[start : start + batch_size]
        ids, mask = pad_left(prompts[start : start + batch_size], PAD)
        new, done, cache = [[] for _ in ids], [False] * len(ids), None
        while not all(done):
            logits, cache = forward(model, ids, mask, positions(mask), cache)
            ids = [[int(row.argmax())] for row in logits]
            mask = [[*row, 1] for row in mask]
            for i, (token,) in enumerate(ids):
                if not done[i]:
                    new[i].append(token)
                    done[i] = len(new[i]) == limits[i] or token in eos_token_ids
        answers += new
    return answers
