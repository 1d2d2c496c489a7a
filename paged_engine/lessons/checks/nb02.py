"""Notebook 02: a cache that keeps everything, attention over it, and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from paged_engine.lessons.exercises import NotYet, exercise, expect

TOLERANCE = 1e-5


@exercise("02.1", "what is appended comes back in order, layer by layer, and each byte is counted")
def kv_cache(cache_class: Callable[[int], Any]) -> None:
    """Appends to two layers, and looks at what comes back."""
    cache, other = cache_class(2), cache_class(2)
    for name in ("num_tokens", "num_bytes"):
        expect(_number(cache, name), 0, f"In a new cache, {name}", "nothing is kept yet")
    k, v = _numbers(2, 6, 4), 100 + _numbers(2, 6, 4)
    kept = 0
    for length in (3, 1, 2):  # a prompt, a token, and a piece of two
        tokens = slice(kept, kept + length)
        kept += length
        for layer in (0, 1):
            new_k, new_v = k[:, tokens] + 1000 * layer, v[:, tokens] + 1000 * layer
            when = f"After {kept} tokens, of which {length} new, layer {layer}"
            result = cache.append(layer, new_k.clone(), new_v.clone())
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                hint = "return two tensors: all keys and all values of this layer"
                raise NotYet("two tensors, keys and values", _told(result), when, hint)
            right = k[:, :kept] + 1000 * layer, v[:, :kept] + 1000 * layer
            _compare(result, right, (new_k, new_v), when)
        if other.num_tokens != 0 or other.num_bytes != 0:
            hint = "what belongs to one cache is made in its __init__, not in the class"
            raise NotYet("another cache still empty", "what this one keeps", when, hint)
        hint = "the length of what layer 0 keeps, along its second axis"
        expect(_number(cache, "num_tokens"), kept, f"{when}, num_tokens", hint)
        hint = "keys and values, of all layers: `tensor.nbytes` knows the size of one"
        expect(_number(cache, "num_bytes"), 2 * 2 * kept * 2 * 4 * 4, f"{when}, num_bytes", hint)
    half = cache_class(1)
    half.append(0, k.half(), v.half())
    hint = "a number in float16 takes two bytes: let the tensor say it"
    expect(_number(half, "num_bytes"), 2 * 6 * 2 * 4 * 2, "In float16, num_bytes", hint)


@exercise("02.2", "one query against kept keys is the last row of full attention, in every shape")
def cached_attention(attend: Callable[..., Any]) -> None:
    """Against attention written out head by head."""
    for what, num_heads, num_kv_heads, length, head_dim, size in (
        ("one head, 4 tokens", 1, 1, 4, 4, 1.0),
        ("one head and a single token", 1, 1, 1, 4, 1.0),
        ("3 heads, each with its own keys", 3, 3, 5, 8, 1.0),
        ("6 query heads on 2 heads of keys", 6, 2, 7, 8, 1.0),
        ("9 query heads on 3 heads of keys", 9, 3, 40, 16, 1.0),
        ("scores of many hundreds", 2, 1, 5, 8, 40.0),
    ):
        q = size * _random(num_heads, head_dim, seed=1)
        k = size * _random(num_kv_heads, length, head_dim, seed=2)
        v = _random(num_kv_heads, length, head_dim, seed=3)
        given = [q.clone(), k.clone(), v.clone()]
        when = f"With {what}"
        got = attend(*given)
        if not all(map(torch.equal, given, (q, k, v))):
            hint = "the keys and values are still needed in the next step"
            raise NotYet("q, k and v left as they were", "one of them changed", when, hint)
        right = _attention(q, k, v)
        if not isinstance(got, torch.Tensor) or got.shape != right.shape:
            hint = "one row for each query head"
            raise NotYet(f"a tensor of shape {tuple(right.shape)}", _told(got), when, hint)
        if not torch.allclose(got, right, atol=TOLERANCE, rtol=1e-4):
            hint = _attention_hint(got, q, k, v)
            raise NotYet(_first(right), _first(got), f"{when}, head by head", hint)


@exercise("02.3", "keys and values of all layers, counted in heads of keys and not of queries")
def bytes_per_token(count: Callable[[Any, int], Any]) -> None:
    """For models that differ in one number at a time."""
    for name, layers, heads, kv_heads, head_dim, size, hint in (
        ("a model of one layer, one head", 1, 1, 1, 4, 4, "a token has a key and a value"),
        ("two layers", 2, 1, 1, 4, 4, "each layer keeps its own"),
        ("4 heads of keys", 2, 4, 4, 16, 4, "each head of keys keeps its own"),
        ("float16", 2, 4, 4, 16, 2, "dtype_bytes is the size of one number"),
        ("4 query heads, 2 heads of keys", 2, 4, 2, 16, 4, "only keys and values are kept"),
        ("heads wider than hidden_size // heads", 2, 4, 2, 32, 4, "take head_dim as it is given"),
        ("Mistral 7B in float16", 32, 32, 8, 128, 2, "multiply all of them"),
    ):
        config = SimpleNamespace(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=64 if head_dim == 32 else heads * head_dim,
        )
        when = f"For {name} (layers {layers}, heads {heads}, kv heads {kv_heads}, "
        when += f"head_dim {head_dim}, {size} bytes a number)"
        got = count(config, size)
        right = layers * 2 * kv_heads * head_dim * size
        if type(got) is float:
            raise NotYet(f"{right}, an int", got, when, "bytes, not KiB: multiply, divide nothing")
        if got == right * heads // kv_heads != right:
            hint = "query heads that share keys add nothing: num_key_value_heads"
        expect(got, right, when, hint)


def _numbers(*shape: int) -> torch.Tensor:
    """Every number another one."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _number(cache: Any, name: str) -> Any:
    value = getattr(cache, name)
    if callable(value):
        raise NotYet(f"{name} without brackets", "a method", hint="put @property above it")
    return value


def _compare(
    got: Any, right: tuple[torch.Tensor, ...], new: tuple[torch.Tensor, ...], when: str
) -> None:
    """Hold returned keys and values against what was appended."""
    for what, ours, wanted, fresh, swapped in zip(
        ("keys", "values"), got, right, new, reversed(right), strict=True
    ):
        if not isinstance(ours, torch.Tensor) or ours.shape != wanted.shape:
            hint = "[num_kv_heads, tokens, head_dim]: the new tokens go along the middle axis"
            if isinstance(ours, torch.Tensor) and ours.shape == fresh.shape != wanted.shape:
                hint = "these are the new ones only; attention needs the old ones before them"
            elif isinstance(ours, torch.Tensor) and ours.numel() > wanted.numel():
                hint = "more than this layer was given: each layer keeps its own"
            shape = tuple(wanted.shape)
            raise NotYet(f"{what} of shape {shape}", _told(ours), when, hint)
        if not torch.equal(ours, wanted):
            hint = "the oldest token first, the newest last"
            if torch.equal(ours, swapped):
                hint = "keys first, then values"
            elif float(ours.max() - ours.min()) >= 500:
                hint = "something of another layer is among them: each layer has its own"
            raise NotYet(_head(wanted), _head(ours), f"{when}, {what} of head 0", hint)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """Written out head by head, so that it looks like nobody's solution."""
    group = q.shape[0] // k.shape[0]
    scale = q.shape[1] ** -0.5 if scale is None else scale
    rows = [
        ((q[h] * k[h // group]).sum(-1) * scale).softmax(-1) @ v[h // group]
        for h in range(q.shape[0])
    ]
    return torch.stack(rows)


def _attention_hint(got: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """What a reader probably did."""
    if not bool(got.isfinite().all()):
        return "exp of a large score is infinite; torch.softmax takes the largest away first"
    unscaled = _attention(q, k, v, scale=1.0)
    if torch.allclose(got, unscaled, atol=TOLERANCE, rtol=1e-4):
        return "divide the scores by the square root of head_dim"
    by_length = _attention(q, k, v, scale=k.shape[1] ** -0.5)
    if torch.allclose(got, by_length, atol=TOLERANCE, rtol=1e-4):
        return "divide by the square root of head_dim, not of the number of tokens"
    if k.shape[1] > 1 and torch.allclose(got, _attention(q, k[:, :-1], v[:, :-1]), atol=TOLERANCE):
        return "the newest token sees itself, too: its key is the last one"
    times = q.shape[0] // k.shape[0]
    if times > 1:
        cyclic = _attention(q, k.repeat(times, 1, 1), v.repeat(times, 1, 1))
        if torch.allclose(got, cyclic, atol=TOLERANCE):
            return "query heads 0, 1, 2 share the first head of keys, and so on: neighbours do"
    return "scores, softmax over the tokens, then the weighted sum of the values, in each head"


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _head(tensor: torch.Tensor) -> list[float]:
    """The first number of each token, for a message."""
    return [float(number) for number in tensor[0, :, 0].tolist()]


def _first(tensor: torch.Tensor) -> list[float]:
    return [round(float(number), 3) for number in tensor[:, 0].tolist()]
