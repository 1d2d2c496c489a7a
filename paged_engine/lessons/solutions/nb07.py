"""Solutions of notebook 07: slots, and attention over scattered blocks in two ways."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch


def slot_mapping(scheduled, block_size):
    """The slot of every token of a step, in the order of `scheduled`."""
    slots = []
    for request, num_tokens in scheduled.items():
        first = request.num_computed_tokens
        for position in range(first, first + num_tokens):
            block = request.block_table[position // block_size]
            slots.append(block * block_size + position % block_size)
    return slots


def gather_attention(q, k_cache, v_cache, block_table, context_len, scale):
    """Copy the blocks of one sequence together, then attend as ever."""
    num_queries, num_heads = q.shape[:2]
    num_blocks = -(-context_len // k_cache.shape[2])  # rounded up
    table = block_table[:num_blocks]
    group = num_heads // k_cache.shape[1]  # query heads that share one head of keys
    k = k_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]
    v = v_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * scale
    positions = torch.arange(context_len, device=q.device)
    later = positions > positions[context_len - num_queries :, None]
    weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
    return (weights @ v).transpose(0, 1)


def online_attention(q, k_cache, v_cache, block_table, context_len, scale):
    """Attend block by block: nothing is copied together."""
    num_queries, num_heads = q.shape[:2]
    block_size = k_cache.shape[2]
    group = num_heads // k_cache.shape[1]
    positions = torch.arange(context_len, device=q.device)
    newest = positions[context_len - num_queries :, None]
    q = q.transpose(0, 1) * scale  # heads first
    largest = q.new_full((num_heads, num_queries, 1), float("-inf"))
    total = torch.zeros_like(largest)
    mixed = q.new_zeros(num_heads, num_queries, v_cache.shape[-1])
    for start in range(0, context_len, block_size):
        block = block_table[start // block_size]
        filled = min(block_size, context_len - start)
        k = k_cache[block, :, :filled].repeat_interleave(group, dim=0)
        v = v_cache[block, :, :filled].repeat_interleave(group, dim=0)
        later = positions[start : start + filled] > newest
        scores = (q @ k.transpose(1, 2)).masked_fill(later, float("-inf"))
        before = largest
        largest = torch.maximum(before, scores.amax(dim=-1, keepdim=True))
        weights = torch.exp(scores - largest)
        rescale = torch.exp(before - largest)
        total = total * rescale + weights.sum(dim=-1, keepdim=True)
        mixed = mixed * rescale + weights @ v
    return (mixed / total).transpose(0, 1)


def paged_attention(q, k, v, layer, cache, batch, *, scale, **options):
    """One layer of one step: the tokens of each sequence over its own blocks."""
    if any(option is not None for option in options.values()):
        raise NotImplementedError("this attention knows no windows, caps or sinks")
    k_cache, v_cache = cache.k[layer], cache.v[layer]
    rows = []
    for s, context_len in enumerate(batch.context_lens):
        own = q[batch.query_starts[s] : batch.query_starts[s + 1]]
        table = batch.block_tables[s]
        rows.append(online_attention(own, k_cache, v_cache, table, context_len, scale))
    return torch.cat(rows)
