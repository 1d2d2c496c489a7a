"""Checks of notebook 07: slots, and attention over blocks that lie anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from paged_engine.lessons.exercises import NotYet, exercise, expect
from paged_engine.request import Request

Function = Callable[..., Any]

TOLERANCE = 1e-5


# ------------------------------------------------------------------ 07.1


@exercise("07.1", "every token of a step gets the slot that its request's block table says")
def check_slot_mapping(slot_mapping: Function) -> None:
    """One request, then several, then many."""
    split = "block_table[position // block_size] is the block, position % block_size the offset"
    _slots(slot_mapping, [("A", [5, 2], 0, 6)], 4, "A prompt of 6 tokens", split)
    start = "positions go on from num_computed_tokens, they do not begin at 0"
    _slots(slot_mapping, [("A", [5, 2], 6, 1)], 4, "A request that decodes, 6 computed", start)
    edge = "position 4 is the first of the second block"
    _slots(slot_mapping, [("A", [5, 2], 4, 1)], 4, "A request with a full block", edge)
    _slots(slot_mapping, [("A", [9, 3, 14], 37, 1)], 16, "Position 37", split)
    flat = "one list for the whole step, request after request in the order of `scheduled`"
    several = [("B", [1, 7, 4], 8, 1), ("A", [5, 2], 0, 6), ("C", [0, 6], 3, 4)]
    _slots(slot_mapping, several, 4, "A decode, a prompt and a chunk", flat)
    _slots(slot_mapping, [], 4, "A step for nobody", "an empty list")
    for seed in range(20):
        draw = random.Random(seed)
        size, blocks = draw.choice([1, 2, 3, 8, 16]), draw.sample(range(60), 60)
        requests = []
        for name in "ABCD"[: draw.randint(1, 4)]:
            table = [blocks.pop() for _ in range(draw.randint(1, 6))]
            first = draw.randrange(len(table) * size)
            requests.append((name, table, first, draw.randint(1, len(table) * size - first)))
        _slots(slot_mapping, requests, size, f"{len(requests)} requests", split)


def _slots(
    slot_mapping: Function,
    requests: list[tuple[str, list[int], int, int]],
    block_size: int,
    when: str,
    hint: str,
) -> None:
    """One step; each request is name, block table, computed tokens, tokens to compute."""
    scheduled, wanted = {}, []
    for name, table, first, count in requests:
        request = Request(name, [1] * (first + count), max_tokens=4)
        request.block_table, request.num_computed_tokens = list(table), first
        scheduled[request] = count
        wanted += [_slot(table, position, block_size) for position in range(first, first + count)]
    tables = ", ".join(f"{name} {table}" for name, table, _, _ in requests)
    when = f"{when}, block size {block_size}" + (f", tables {tables}" if tables else "")
    got = slot_mapping(scheduled, block_size)
    expect(got, wanted, when, hint)
    if any(type(slot) is not int for slot in got):
        raise NotYet("whole numbers", got, when, "// divides without a rest")
    for (name, table, first, _), request in zip(requests, scheduled, strict=True):
        about = f"{when}, {name} afterwards"
        kept = "only look: the engine counts and allocates"
        expect(request.block_table, table, f"{about}, block_table", kept)
        expect(request.num_computed_tokens, first, f"{about}, num_computed_tokens", kept)
    if len(scheduled) != len(requests):
        raise NotYet("scheduled left as it was", "requests missing", when, "only look")


def _slot(table: list[int], position: int, block_size: int) -> int:
    index, offset = divmod(position, block_size)
    return table[index] * block_size + offset


# ------------------------------------------------------------------ 07.2 and 07.3


@dataclass(frozen=True)
class _Case:
    """One sequence: what it is, and its sizes."""

    what: str
    queries: int
    context: int
    block_size: int = 4
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 8
    value_dim: int = 8
    size: float = 1.0  # of the queries, and so of the scores
    shift: float = 0.0  # added to every score


_CASES = (
    _Case("one token in one block", 1, 3),
    _Case("one token over three blocks, the last part full", 1, 10),
    _Case("one token over two full blocks", 1, 8),
    _Case("a prompt of one block", 4, 4),
    _Case("a prompt of 7 tokens", 7, 7),
    _Case("a chunk: the last 5 of 11 tokens", 5, 11),
    _Case("6 query heads on 2 heads of keys", 1, 10, heads=6),
    _Case("6 query heads on 2 heads of keys, and a chunk", 3, 10, heads=6),
    _Case("blocks of one token", 2, 5, block_size=1),
    _Case("blocks of 16", 1, 40, block_size=16, heads=9, kv_heads=3, head_dim=16, value_dim=16),
    _Case("scores of some hundreds", 1, 13, size=150.0),
    _Case("scores of some hundreds, and a chunk", 6, 13, size=150.0),
    _Case("scores that are all near -300", 1, 13, shift=-300.0),
    _Case("values narrower than keys", 1, 10, value_dim=6),
)


@exercise("07.2", "scattered blocks give what dense attention gives, and no foreign slot is read")
def check_gather(attend: Function) -> None:
    """Against attention written out token by token."""
    for seed, case in enumerate(_CASES):
        _attend(attend, case, seed)


@exercise(
    "07.3",
    "block by block gives what dense attention gives, also where later scores are far larger, "
    "and nothing as long as the context is ever made",
)
def check_online(attend: Function) -> None:
    """As 07.2, and then a look at what is made on the way."""
    for seed, case in enumerate(_CASES):
        _attend(attend, case, seed)
    for rising in (True, False):
        _attend_steps(attend, rising)
    _look(attend)


@dataclass
class _Sequence:
    """Tensors of one sequence in a pool where every slot that is not its own holds NaN."""

    q: torch.Tensor
    k: torch.Tensor  # [context, kv_heads, head_dim], in order
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    table: torch.Tensor
    scale: float

    @property
    def context(self) -> int:
        return len(self.k)

    def arguments(self) -> tuple[Any, ...]:
        tensors = (self.q, self.k_cache, self.v_cache, self.table)
        return (*(t.clone() for t in tensors), self.context, self.scale)


def _sequence(case: _Case, seed: int) -> _Sequence:
    random_numbers = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random_numbers)

    q = case.size * draw(case.queries, case.heads, case.head_dim)
    k = draw(case.context, case.kv_heads, case.head_dim)
    scale = 1.25 * case.head_dim**-0.5  # not the usual one, so that it must be used
    if case.shift:
        q[..., 0], k[..., 0] = 1.0, case.shift / scale
    return _placed(q, k, draw(case.context, case.kv_heads, case.value_dim), case, scale, seed)


def _placed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: _Case, scale: float, seed: int
) -> _Sequence:
    """Put keys and values into blocks anywhere; the table is longer than needed."""
    needed = -(-case.context // case.block_size)
    num_blocks = needed + 4
    # block 0 is never its own, so that a table that is not looked at is noticed
    table = random.Random(seed).sample(range(1, num_blocks), needed)
    caches = []
    for tensor in (k, v):
        shape = (num_blocks, case.kv_heads, case.block_size, tensor.shape[-1])
        cache = torch.full(shape, float("nan"))
        for position, row in enumerate(tensor):
            block = table[position // case.block_size]
            cache[block, :, position % case.block_size] = row
        caches.append(cache)
    padded = torch.tensor([*table, table[0], table[0]])  # as `pack` fills up short rows
    return _Sequence(q, k, v, caches[0], caches[1], padded, scale)


def _attend(attend: Function, case: _Case, seed: int) -> None:
    """One case."""
    sequence = _sequence(case, seed)
    when = f"With {case.what} (block size {case.block_size}, {case.context} tokens)"
    _compare(attend, sequence, when)


def _attend_steps(attend: Function, rising: bool) -> None:
    """Scores that grow from block to block by 40, or shrink."""
    case = _Case("", 1, 14, heads=1, kv_heads=1)
    q, k = torch.zeros(1, 1, 8), torch.zeros(14, 1, 8)
    q[..., 0] = 1.0
    steps = torch.arange(14) // case.block_size * 40.0 + torch.arange(14) / 8
    k[:, 0, 0] = steps if rising else -steps
    v = torch.arange(14 * 8).float().reshape(14, 1, 8) / 10
    word = "grow" if rising else "shrink"
    when = f"With scores that {word} by 40 from block to block"
    _compare(attend, _placed(q, k, v, case, 1.0, 3), when)


def _compare(attend: Function, s: _Sequence, when: str) -> None:
    given = s.arguments()
    got = attend(*given)
    names = ("q", "k_cache", "v_cache", "block_table")
    for name, before, after in zip(names, s.arguments(), given, strict=False):
        if not torch.equal(before.nan_to_num(7e7), after.nan_to_num(7e7)):
            hint = "work on new tensors: the cache is still needed in the next step"
            raise NotYet(f"{name} left as it was", "it was changed", when, hint)
    right = _dense(s)
    if not isinstance(got, torch.Tensor) or got.shape != right.shape:
        hint = "[queries, heads, head_dim], as q came in"
        raise NotYet(f"a tensor of shape {tuple(right.shape)}", _told(got), when, hint)
    if not torch.allclose(got, right, atol=TOLERANCE, rtol=1e-4):
        worst = int((got - right).abs().nan_to_num(7e7).amax(dim=(1, 2)).argmax())
        where = f"{when}, the first number of each head, query {worst} of {len(right)}"
        raise NotYet(_first(right[worst]), _first(got[worst]), where, _hint(attend, got, s))


def _dense(
    s: _Sequence,
    *,
    scale: float | None = None,
    causal: bool = True,
    from_zero: bool = False,
    cyclic: bool = False,
) -> torch.Tensor:
    """Written out token by token and head by head; the options are what readers may do."""
    scale = s.scale if scale is None else scale
    queries, heads, _ = s.q.shape
    kv_heads = s.k.shape[1]
    out = torch.empty(queries, heads, s.v.shape[-1])
    for i in range(queries):
        sees = s.context - queries + i + 1 if causal else s.context
        sees = i + 1 if from_zero else sees
        for h in range(heads):
            g = h % kv_heads if cyclic else h // (heads // kv_heads)
            scores = (s.k[:sees, g].double() @ s.q[i, h].double()) * scale
            out[i, h] = (scores.softmax(0) @ s.v[:sees, g].double()).float()
    return out


def _hint(attend: Function, got: torch.Tensor, s: _Sequence) -> str:
    """What a reader probably did."""
    if not bool(got.isfinite().all()):
        if float(s.q.abs().max()) > 20 or float(s.k[..., 0].max()) > 30:
            return "exp of a large score is infinite: take the largest score away first"
        if float(s.k[..., 0].max()) < -20:
            return "let the largest score so far begin at -infinity, not at 0"
        q, k_cache, v_cache, *others = s.arguments()
        clean = attend(q, k_cache.nan_to_num(0), v_cache.nan_to_num(0), *others)
        if not bool(clean.isfinite().all()):
            return "a NaN is made on the way: 0 times infinity, or infinity less infinity?"
        return (
            "every slot that is not this sequence's holds NaN here: follow the table, and stop "
            "at context_len; masking the scores is not enough, because 0 * NaN is NaN"
        )
    for options, words in (
        ({"causal": False}, "a query at position p sees positions up to p: mask the later ones"),
        (
            {"from_zero": True},
            "the queries are the newest tokens: the first of them stands at position "
            "context_len - len(q)",
        ),
        ({"scale": 1.0}, "the scores are multiplied by scale"),
        ({"scale": s.q.shape[-1] ** -0.5}, "take the scale that is given"),
        ({"scale": s.scale**2}, "scale once"),
        ({"cyclic": True}, "neighbouring query heads share a head of keys: repeat_interleave"),
    ):
        if torch.allclose(got, _dense(s, **options), atol=TOLERANCE, rtol=1e-4):
            return words
    if s.context > s.k_cache.shape[2]:
        return (
            "with one block you may be right: when the largest score grows, multiply by "
            "exp(before - now) what was summed so far, the total and the mixed values"
        )
    return "scores, mask, softmax over the context, then the weighted sum of the values"


# ------------------------------------------------------------------ what is made on the way


class _Watch(TorchFunctionMode):
    """Notes the shapes of new tensors of floating-point numbers."""

    def __init__(self, own: list[torch.Tensor]) -> None:
        super().__init__()
        self.own = {t.untyped_storage().data_ptr() for t in own}
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                continue
            if tensor.untyped_storage().data_ptr() not in self.own:  # not a mere view
                self.shapes.append(tuple(tensor.shape))
        return result


def _look(attend: Function) -> None:
    """Nothing as long as the context may be made on the way."""
    case = _Case("", 1, 83, block_size=8, heads=4, head_dim=16, value_dim=16)
    arguments = _sequence(case, 1).arguments()
    with _Watch(list(arguments[:3])) as watch:
        attend(*arguments)
    most = 2 * case.heads * case.block_size * case.head_dim
    for shape in watch.shapes:
        if max(shape, default=0) >= case.context or torch.Size(shape).numel() > most:
            hint = "read one block, add it to what you carry, and forget it"
            when = f"With {case.context} tokens in blocks of {case.block_size}"
            raise NotYet(
                "no tensor as long as the context", f"one of shape {list(shape)}", when, hint
            )


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _first(tensor: torch.Tensor) -> list[float]:
    return [round(float(number), 3) for number in tensor[:, 0].tolist()]
