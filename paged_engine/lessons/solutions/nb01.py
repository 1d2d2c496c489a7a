"""Notebook 01: the naive loop, and how much work it is."""

# mypy: ignore-errors

from __future__ import annotations

import torch


def greedy_generate(model, prompt, max_tokens, eos_token_ids=()):
    """The new token ids, the one that ended it included."""
    known, new = list(prompt), []
    while len(new) < max_tokens:
        with torch.inference_mode():
            logits = model(torch.tensor([known]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        new.append(token)
        known.append(token)
        if token in eos_token_ids:
            break
    return new


def forward_tokens(num_prompt, num_new):
    """How many tokens go through the model in all passes of the naive loop."""
    return num_prompt * num_new + num_new * (num_new - 1) // 2


def needed_tokens(num_prompt, num_new):
    """How many if each token goes through the model once at most."""
    return num_prompt + num_new - 1
