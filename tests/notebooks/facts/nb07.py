"""What the tests know of notebook 07."""

TIMING_CELLS: list[str] = []

_SLOTS = """\
def slot_mapping(scheduled, block_size):
    slots = []
    for request, num_tokens in scheduled.items():
        first = request.num_computed_tokens
        for position in range(first, first + num_tokens):
            block = request.block_table[position // block_size]
            slots.append(block * block_size + position % block_size)
    return slots
"""

_GATHER = """\
def gather_attention(q, k_cache, v_cache, block_table, context_len, scale):
    num_queries, num_heads = q.shape[:2]
    num_blocks = -(-context_len // k_cache.shape[2])
    table = block_table[:num_blocks]
    group = num_heads // k_cache.shape[1]
    k = k_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]
    v = v_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * scale
    positions = torch.arange(context_len)
    later = positions > positions[context_len - num_queries :, None]
    weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
    return (weights @ v).transpose(0, 1)
"""

_ONLINE = """\
def online_attention(q, k_cache, v_cache, block_table, context_len, scale):
    num_queries, num_heads = q.shape[:2]
    block_size = k_cache.shape[2]
    group = num_heads // k_cache.shape[1]
    positions = torch.arange(context_len)
    newest = positions[context_len - num_queries :, None]
    q = q.transpose(0, 1) * scale
    largest = torch.full((num_heads, num_queries, 1), float("-inf"))
    total = torch.zeros(num_heads, num_queries, 1)
    mixed = torch.zeros(num_heads, num_queries, v_cache.shape[-1])
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
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "07.1": {
        "takes the blocks for one piece": _but(
            _SLOTS,
            ("block_table[position // block_size]", "block_table[0]"),
            ("position % block_size", "position"),
        ),
        "begins every request at position 0": _but(_SLOTS, ("request.num_computed_tokens", "0")),
        "gives the block and forgets the offset": _but(_SLOTS, (" + position % block_size", "")),
        "counts slots from the index in the table": _but(
            _SLOTS,
            ("request.block_table[position // block_size]", "position // block_size"),
        ),
        "a list for each request": _but(
            _SLOTS,
            ("    for request, num_tokens", "    every = []\n    for request, num_tokens"),
            ("        first = request", "        slots = []\n        first = request"),
            ("    return slots", "        every.append(slots)\n    return every"),
        ),
        "only the last token of each": _but(
            _SLOTS, ("range(first, first + num_tokens)", "[first + num_tokens - 1]")
        ),
        "divides with a rest": _but(
            _SLOTS, ("block * block_size + position % block_size", "block * block_size / 1")
        ),
        "off by one at the edge of a block": _but(
            _SLOTS,
            ("[position // block_size]", "[max(position - 1, 0) // block_size]"),
        ),
        "counts what is only planned": _but(
            _SLOTS,
            (
                "    return slots",
                "        request.num_computed_tokens += num_tokens\n    return slots",
            ),
        ),
        "returns nothing": _but(_SLOTS, ("    return slots\n", "")),
        "a tensor": _but(_SLOTS, ("return slots", "return torch.tensor(slots)")),
    },
    "07.2": {
        "does not look at the table": _but(
            _GATHER, ("block_table[:num_blocks]", "torch.arange(num_blocks)")
        ),
        "reads the last block to its end": _but(
            _GATHER,
            ("    k = k_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]\n", ""),
            ("    v = v_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]\n", ""),
            (
                "    k, v = k.repeat",
                "    k = k_cache[table].transpose(0, 1).flatten(1, 2)\n"
                "    v = v_cache[table].transpose(0, 1).flatten(1, 2)\n"
                "    context_len = k.shape[1]\n"
                "    k, v = k.repeat",
            ),
        ),
        "hides the tail and reads it": _but(
            _GATHER,
            (
                "    k = k_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]\n",
                "    k = k_cache[table].transpose(0, 1).flatten(1, 2)\n",
            ),
            (
                "    v = v_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]\n",
                "    v = v_cache[table].transpose(0, 1).flatten(1, 2)\n",
            ),
            (
                "    positions = torch.arange(context_len)\n",
                "    positions = torch.arange(k.shape[1])\n",
            ),
            (
                "positions[context_len - num_queries :, None]",
                "positions[context_len - num_queries : context_len, None]",
            ),
        ),
        "reads the blocks that fill up the table": _but(
            _GATHER, ("-(-context_len // k_cache.shape[2])", "len(block_table)")
        ).replace("[:, :context_len]", ""),
        "leaves out a block that is part full": _but(
            _GATHER, ("-(-context_len // k_cache.shape[2])", "context_len // k_cache.shape[2]")
        ),
        "masks nothing": _but(_GATHER, ('scores.masked_fill(later, float("-inf"))', "scores")),
        "lets queries stand at the beginning": _but(
            _GATHER,
            ("positions[context_len - num_queries :, None]", "positions[:num_queries, None]"),
        ),
        "hides each token from itself": _but(
            _GATHER, ("positions > positions", "positions >= positions")
        ),
        "forgets the scale": _but(_GATHER, (" * scale", "")),
        "always the usual scale": _but(_GATHER, (" * scale", " * q.shape[-1] ** -0.5")),
        "shares keys in turn": _but(
            _GATHER,
            (
                "k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)",
                "k.repeat(group, 1, 1), v.repeat(group, 1, 1)",
            ),
        ),
        "flattens blocks across heads": _but(
            _GATHER,
            (
                "k_cache[table].transpose(0, 1).flatten(1, 2)[:, :context_len]",
                "k_cache[table].reshape(k_cache.shape[1], -1, k_cache.shape[3])[:, :context_len]",
            ),
        ),
        "returns heads first": _but(_GATHER, ("(weights @ v).transpose(0, 1)", "weights @ v")),
        "wipes the tail of the cache": _but(
            _GATHER,
            (
                "    table = block_table[:num_blocks]\n",
                "    table = block_table[:num_blocks]\n"
                "    v_cache.nan_to_num_(0)\n    k_cache.nan_to_num_(0)\n",
            ),
        ),
        "returns nothing": _but(_GATHER, ("return (weights", "out = (weights")),
    },
    "07.3": {
        "does not rescale": _but(
            _ONLINE, ("total * rescale", "total"), ("mixed * rescale", "mixed")
        ),
        "rescales the total only": _but(_ONLINE, ("mixed * rescale", "mixed")),
        "rescales the wrong way": _but(_ONLINE, ("before - largest)", "largest - before)")),
        "a softmax in each block": _but(
            _ONLINE,
            ("weights = torch.exp(scores - largest)", "weights = torch.softmax(scores, dim=-1)"),
            ("total * rescale + weights.sum(dim=-1, keepdim=True)", "total + 1"),
            ("mixed * rescale", "mixed"),
        ),
        "takes no largest away": _but(
            _ONLINE,
            ("weights = torch.exp(scores - largest)", "weights = torch.exp(scores)"),
            ("rescale = torch.exp(before - largest)", "rescale = 1"),
        ),
        "lets the largest begin at 0": _but(
            _ONLINE,
            (
                'torch.full((num_heads, num_queries, 1), float("-inf"))',
                "torch.zeros(num_heads, num_queries, 1)",
            ),
        ),
        "keeps the largest of the first block": _but(
            _ONLINE,
            (
                "largest = torch.maximum(before, scores.amax(dim=-1, keepdim=True))",
                "largest = scores.amax(dim=-1, keepdim=True) if start == 0 else before",
            ),
        ),
        "reads the last block to its end": _but(
            _ONLINE,
            ("filled = min(block_size, context_len - start)", "filled = block_size"),
            ("torch.arange(context_len)", "torch.arange(context_len + block_size)"),
            (
                "positions[context_len - num_queries :, None]",
                "positions[context_len - num_queries : context_len, None]",
            ),
        ),
        "walks over the pool": _but(
            _ONLINE, ("block_table[start // block_size]", "start // block_size")
        ),
        "masks nothing": _but(_ONLINE, ('.masked_fill(later, float("-inf"))', "")),
        "divides in every block": _but(
            _ONLINE,
            (
                "mixed = mixed * rescale + weights @ v",
                "mixed = (mixed * rescale + weights @ v) / total",
            ),
            ("(mixed / total)", "mixed"),
        ),
        "forgets to divide": _but(_ONLINE, ("(mixed / total)", "mixed")),
        "forgets the scale": _but(_ONLINE, (" * scale", "")),
        "shares keys in turn": _ONLINE.replace(
            "repeat_interleave(group, dim=0)", "repeat(group, 1, 1)"
        ),
        "one largest for all heads and queries": _but(
            _ONLINE,
            ("scores.amax(dim=-1, keepdim=True)", "scores.amax()"),
        ),
        "gathers first": _GATHER.replace("gather_attention", "online_attention"),
        "scales the query in place": _but(
            _ONLINE, ("q = q.transpose(0, 1) * scale", "q = q.transpose(0, 1).mul_(scale)")
        ),
        "keeps a list of all scores": """\
def online_attention(q, k_cache, v_cache, block_table, context_len, scale):
    size, group = k_cache.shape[2], q.shape[1] // k_cache.shape[1]
    q, scores, mixed = q.transpose(0, 1) * scale, [], 0
    positions = torch.arange(context_len)
    newest = positions[context_len - q.shape[1] :, None]
    for start in range(0, context_len, size):
        n = min(size, context_len - start)
        k = k_cache[block_table[start // size], :, :n].repeat_interleave(group, dim=0)
        later = positions[start : start + n] > newest
        scores.append((q @ k.transpose(1, 2)).masked_fill(later, float("-inf")))
    weights = torch.cat(scores, dim=-1).softmax(-1)
    for start in range(0, context_len, size):
        n = min(size, context_len - start)
        v = v_cache[block_table[start // size], :, :n].repeat_interleave(group, dim=0)
        mixed = mixed + weights[:, :, start : start + n] @ v
    return mixed.transpose(0, 1)
""",
    },
}
