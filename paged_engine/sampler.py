"""From logits to tokens, for the whole batch at once.

Random draws are keyed by (seed, sample index, output position, stream): the same request gets
the same draw whatever its id, its neighbours, or how often it was preempted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paged_engine.request import Request, TokenLogprob

# Filters look at so many of the most likely tokens first; a row whose filter reaches further
# is sorted whole.  The number never depends on the other rows, so neither does the draw.
NUM_CANDIDATES = 1024
_MIN_TEMPERATURE = 1e-5  # below, logits overflow
_LARGEST = 1e30  # a logit divided by less overflows
_SAMPLING_STREAM = 0
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token and, where asked for, its log-probability."""

    token_id: int
    logprob: TokenLogprob | None = None


def keyed_uniform(seed: int, sample_index: int, position: int, stream: int) -> float:
    """A number in [0, 1), the same for the same key.

    A counter-based generator: the key is mixed by the finalizer of SplitMix64 (Steele, Lea and
    Flood, OOPSLA 2014) once for each part, so there is no state to share or to lose.
    """
    x = 0
    for part in (seed, sample_index, position, stream):
        x = (x ^ (part & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK64
        x ^= x >> 31
    return (x >> 11) / (1 << 53)


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[Sampled]:
    """Choose the next token of each request.

    Args:
        logits: `[S, vocab_size]`, any float type, all usable; not changed.
        requests: The S requests, whose known tokens are all computed.

    Returns:
        S choices, in order.
    """
    raw = logits.float()
    adjusted = _adjust(raw, requests)
    token_ids = _largest(adjusted).tolist()

    drawn = [s for s, r in enumerate(requests) if not r.params.is_greedy]
    for filtered in (True, False):
        rows = [s for s in drawn if _is_filtered(requests[s]) == filtered]
        if rows:
            draw = _draw_filtered if filtered else _draw
            chosen = draw(adjusted[rows], [requests[s] for s in rows])
            for s, token_id in zip(rows, chosen, strict=True):
                token_ids[s] = token_id

    logprobs = _logprobs(raw, requests, token_ids)
    return [Sampled(token_id, logprobs.get(s)) for s, token_id in enumerate(token_ids)]


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """`[S]`, in each row the first of the largest."""
    if logits.device.type == "cpu":  # where numpy takes a quarter of the time that torch does
        return torch.from_numpy(logits.detach().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def usable_rows(logits: torch.Tensor) -> list[bool]:
    """Which rows of `[S, vocab_size]` a token can be chosen from: no NaN, nothing infinite on top.

    The largest of a row is NaN if any of it is.
    """
    usable: list[bool] = torch.isfinite(logits.amax(dim=-1)).tolist()
    return usable


def _is_filtered(request: Request) -> bool:
    params = request.params
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _adjust(raw: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Logits after penalties and forbidden tokens; `raw` itself where there are none."""
    penalised = [s for s, r in enumerate(requests) if r.params.has_penalties]
    forbidden = [
        (s, token_id)
        for s, r in enumerate(requests)
        if r.num_output_tokens < r.params.min_tokens
        for token_id in _stop_tokens(r)
        if token_id < raw.shape[1]
    ]
    if not penalised and not forbidden:
        return raw
    adjusted = raw.clone()
    if penalised:
        adjusted[penalised] = _penalise(raw[penalised], [requests[s] for s in penalised])
    if forbidden:
        rows, token_ids = (list(x) for x in zip(*forbidden, strict=True))
        adjusted[rows, token_ids] = float("-inf")
    return adjusted


def _stop_tokens(request: Request) -> frozenset[int]:
    stop = frozenset(request.params.stop_token_ids)
    return stop if request.params.ignore_eos else stop | request.eos_token_ids


def _penalise(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    in_output = _count([r.output_token_ids for r in requests], logits)
    seen = (in_output + _count([r.prompt_token_ids for r in requests], logits)) > 0
    repetition = column([max(r.params.repetition_penalty, 1 / _LARGEST) for r in requests])
    penalised = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, penalised, logits)
    logits = logits - column([r.params.frequency_penalty for r in requests]) * in_output
    return logits - column([r.params.presence_penalty for r in requests]) * (in_output > 0)


def _count(token_ids: Sequence[Sequence[int]], like: torch.Tensor) -> torch.Tensor:
    """How often each token occurs in each row, `[S, vocab_size]`."""
    counts = torch.zeros_like(like)
    rows = [row for row, ids in enumerate(token_ids) for _ in ids]
    columns = [token_id for ids in token_ids for token_id in ids]
    index = (
        torch.tensor(rows, dtype=torch.int64, device=like.device),
        torch.tensor(columns, dtype=torch.int64, device=like.device),
    )
    return counts.index_put_(index, torch.ones((), device=like.device), accumulate=True)


def _probabilities(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """`[S, vocab_size]` in fp64, after temperature."""
    temperature = torch.tensor(
        [max(r.params.temperature, _MIN_TEMPERATURE) for r in requests], device=logits.device
    )
    return torch.softmax((logits / temperature[:, None]).double(), dim=-1)


def _uniforms(requests: Sequence[Request], device: torch.device) -> torch.Tensor:
    draws = [
        keyed_uniform(r.seed, r.sample_index, r.num_output_tokens, _SAMPLING_STREAM)
        for r in requests
    ]
    return torch.tensor(draws, dtype=torch.float64, device=device)[:, None]


def _choose(weights: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Places chosen with these weights, `[S, 1]`, by inverting the distribution function."""
    cumulative = weights.cumsum(dim=-1)
    target = _uniforms(requests, weights.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[1] - 1)


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    chosen: list[int] = _choose(_probabilities(logits, requests), requests)[:, 0].tolist()
    return chosen


def _draw_filtered(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    probabilities = _probabilities(logits, requests)
    num_candidates = min(NUM_CANDIDATES, logits.shape[1])
    weights, token_ids = probabilities.topk(num_candidates, dim=-1)
    kept, is_complete = _filter(weights, requests, logits.shape[1])
    chosen = token_ids.gather(1, _choose(kept, requests))[:, 0].tolist()
    if rest := [s for s, complete in enumerate(is_complete.tolist()) if not complete]:
        weights, token_ids = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        members = [requests[s] for s in rest]
        kept, _ = _filter(weights, members, logits.shape[1])
        places = token_ids.gather(1, _choose(kept, members))[:, 0].tolist()
        for s, token_id in zip(rest, places, strict=True):
            chosen[s] = token_id
    return [int(token_id) for token_id in chosen]


def _filter(
    weights: torch.Tensor, requests: Sequence[Request], vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero what top-k, then top-p among what is left, then min-p remove.

    Args:
        weights: `[S, C]`, the C largest probabilities, descending.
        requests: The S requests.
        vocab_size: How many probabilities there are in all.

    Returns:
        The weights, and `[S]` whether nothing beyond the C could have been kept.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=weights.device)[:, None]

    num_candidates = weights.shape[1]
    top_k = column([min(r.params.top_k or vocab_size, vocab_size) for r in requests])
    top_p = column([r.params.top_p for r in requests])
    min_p = column([r.params.min_p for r in requests])
    rank = torch.arange(num_candidates, device=weights.device)
    by_rank = rank < top_k
    total = torch.where(top_k >= vocab_size, 1.0, (weights * by_rank).sum(-1, keepdim=True))
    before = weights.cumsum(dim=-1) - weights
    # the token that crosses p stays: what counts is the mass before it (nano-vllm pull 260)
    keep = by_rank & (before < top_p * total) & (weights >= min_p * weights[:, :1])
    keep[:, 0] = True
    # a top-k beyond the C leaves the total unknown that top-p is measured against
    is_complete = torch.where(top_k[:, 0] < vocab_size, top_k[:, 0] <= num_candidates, ~keep[:, -1])
    return weights * keep, is_complete | (num_candidates == vocab_size)


def _logprobs(
    raw: torch.Tensor, requests: Sequence[Request], token_ids: Sequence[int]
) -> dict[int, TokenLogprob]:
    """By row, for those that ask; of the model's own distribution."""
    rows = [s for s, r in enumerate(requests) if r.params.logprobs is not None]
    if not rows:
        return {}
    logprobs = torch.log_softmax(raw[rows], dim=-1)
    most = max(requests[s].params.logprobs or 0 for s in rows)
    values, ids = logprobs.topk(min(most, raw.shape[1]), dim=-1)
    result = {}
    for place, s in enumerate(rows):
        wanted = requests[s].params.logprobs or 0
        top = zip(ids[place, :wanted].tolist(), values[place, :wanted].tolist(), strict=True)
        chosen = float(logprobs[place, token_ids[s]])
        result[s] = TokenLogprob(token_ids[s], chosen, tuple(top))
    return result
