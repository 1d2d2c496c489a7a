"""Solutions of notebook 02: a cache of keys and values, attention over it, and what it weighs."""

# mypy: ignore-errors

from __future__ import annotations

import torch


class KVCache:
    """Keys and values of every token so far, for each layer in one piece."""

    def __init__(self, num_layers):
        self.keys = [None] * num_layers
        self.values = [None] * num_layers

    def append(self, layer, k, v):
        """Keep `[num_kv_heads, T, head_dim]` of T tokens; returns all of the layer."""
        if self.keys[layer] is not None:
            k = torch.cat([self.keys[layer], k], dim=1)
            v = torch.cat([self.values[layer], v], dim=1)
        self.keys[layer], self.values[layer] = k, v
        return k, v

    @property
    def num_tokens(self):
        """Tokens whose keys and values are kept."""
        return 0 if self.keys[0] is None else self.keys[0].shape[1]

    @property
    def num_bytes(self):
        """Bytes of all keys and all values, over all layers."""
        return sum(x.nbytes for x in self.keys + self.values if x is not None)


def attend_cached(q, k, v):
    """Attention of one new token, `q [num_heads, head_dim]`, over all that is kept."""
    group = q.shape[0] // k.shape[0]  # query heads that share one head of keys
    k = k.repeat_interleave(group, dim=0)
    v = v.repeat_interleave(group, dim=0)
    scores = (k @ q[:, :, None])[:, :, 0] / q.shape[1] ** 0.5
    weights = torch.softmax(scores, dim=-1)
    return (weights[:, None, :] @ v)[:, 0]


def bytes_per_token(config, dtype_bytes):
    """Bytes that the cache needs for one more token."""
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * keys * dtype_bytes
