"""What the tests know of notebook 09."""

TIMING_CELLS: list[str] = []

_REDUCE = """\
def reduce(state, event):
    match event.kind:
        case "engine_started":
            state.blocks = [BlockState() for _ in range(event.num_blocks)]
            state.num_usable, state.block_size = event.num_blocks, event.block_size
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
        case "pool_resized":
            state.num_usable = event.num_usable
        case "parameters_changed":
            state.max_num_seqs = event.max_num_seqs
            state.max_num_batched_tokens = event.max_num_batched_tokens
        case "hit" | "allocated":
            state.requests[event.request_id].block_table += event.block_ids
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt += 1
        case "freed":
            table = state.requests[event.request_id].block_table
            del table[len(table) - len(event.block_ids) :]
            for block_id in event.block_ids:
                state.blocks[block_id].ref_cnt -= 1
        case "cached" | "evicted":
            state.blocks[event.block_id].block_hash = getattr(event, "block_hash", None)
        case _:
            return lives(state, event)
    return state
"""

_AT = """\
def at(self, k):
    place = min(k // self.every, len(self.keys) - 1)
    state = copy_state(self.keys[place])
    for event in self.events[place * self.every : k]:
        state = self.reduce(state, event)
    return state
"""

_BROKEN = """\
def broken(state):
    found = set()
    held = [0] * len(state.blocks)
    for request in state.requests.values():
        for block_id in request.block_table:
            held[block_id] += 1
        if request.block_table and request.status != "running":
            found.add("idle")
    for block, times in zip(state.blocks, held, strict=True):
        if block.ref_cnt != times:
            found.add("count")
        if times > 1 and block.block_hash is None:
            found.add("shared")
    return found
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "09.1": {
        "forgets what is freed": _but(
            _REDUCE, ('        case "freed":\n', '        case "never":\n')
        ),
        "takes a hit for nothing new": _but(
            _REDUCE, ('case "hit" | "allocated"', 'case "allocated"')
        ),
        "replaces the table": _but(
            _REDUCE, ("block_table += event", "block_table = [*event")
        ).replace("[*event.block_ids", "[*event.block_ids]"),
        "counts no references": _but(
            _REDUCE,
            (
                "            for block_id in event.block_ids:\n"
                "                state.blocks[block_id].ref_cnt += 1\n",
                "",
            ),
        ),
        "sets the count to one": _but(_REDUCE, ("ref_cnt += 1", "ref_cnt = 1")),
        "sets the count to zero": _but(_REDUCE, ("ref_cnt -= 1", "ref_cnt = 0")),
        "empties the whole table": _but(
            _REDUCE, ("del table[len(table) - len(event.block_ids) :]", "table.clear()")
        ),
        "frees the beginning of the table": _but(
            _REDUCE,
            ("del table[len(table) - len(event.block_ids) :]", "del table[: len(event.block_ids)]"),
        ),
        "forgets what is evicted": _but(_REDUCE, ('"cached" | "evicted"', '"cached"')),
        "has the same block many times": _but(
            _REDUCE,
            (
                "[BlockState() for _ in range(event.num_blocks)]",
                "[BlockState()] * event.num_blocks",
            ),
        ),
        "builds the pool anew when it is resized": _but(
            _REDUCE,
            (
                "            state.num_usable = event.num_usable\n",
                "            state.num_usable = event.num_usable\n"
                "            state.blocks = [BlockState() for _ in range(event.num_usable)]\n",
            ),
        ),
        "forgets the limits": _but(_REDUCE, ('case "parameters_changed"', 'case "never"')),
        "forgets lives": _but(
            _REDUCE, ("            return lives(state, event)\n", "            pass\n")
        ),
        "returns nothing": _but(_REDUCE, ("    return state\n", "")),
        "returns the event": _but(_REDUCE, ("    return state\n", "    return event\n")),
        "begins a new state each time": _but(
            _REDUCE,
            ("    match event.kind:\n", "    state = EngineState()\n    match event.kind:\n"),
        ),
    },
    "09.2": {
        "plays from the beginning": """\
def at(self, k):
    state = EngineState()
    for event in self.events[:k]:
        state = self.reduce(state, event)
    return state
""",
        "spoils its keys": _but(_AT, ("copy_state(self.keys[place])", "self.keys[place]")),
        "copies the list only": _but(
            _AT, ("copy_state(self.keys[place])", "list(self.keys)[place]")
        ),
        "one event too many": _but(_AT, (": k]", ": k + 1]")),
        "one event too few": _but(_AT, (": k]", ": max(0, k - 1)]")),
        "falls off the last key": _but(
            _AT, ("min(k // self.every, len(self.keys) - 1)", "k // self.every")
        ),
        "counts keys as events": _but(
            _AT, ("self.events[place * self.every : k]", "self.events[place:k]")
        ),
        "always the first key": _but(_AT, ("min(k // self.every, len(self.keys) - 1)", "0")),
        "returns nothing": _but(_AT, ("    return state\n", "")),
    },
    "09.3": {
        "always content": "def broken(state):\n    return set()\n",
        "stops at the first": _but(
            _BROKEN, ('            found.add("count")\n', '            return found | {"count"}\n')
        ),
        "counts used blocks only": _but(
            _BROKEN, ("if block.ref_cnt != times:", "if times and block.ref_cnt != times:")
        ),
        "lets the finished hold blocks": _but(
            _BROKEN, ('request.status != "running"', 'request.status in ("waiting", "preempted")')
        ),
        "lets the preempted hold blocks": _but(
            _BROKEN,
            ('request.status != "running"', 'request.status not in ("running", "preempted")'),
        ),
        "calls every share broken": _but(
            _BROKEN, ("if times > 1 and block.block_hash is None:", "if times > 1:")
        ),
        "takes the hash 0 for none": _but(
            _BROKEN, ("block.block_hash is None", "not block.block_hash")
        ),
        "asks the count, not the tables": _but(
            _BROKEN, ("if times > 1 and", "if block.ref_cnt > 1 and")
        ),
        "clears the tables as it goes": _but(
            _BROKEN,
            (
                "            held[block_id] += 1\n",
                "            held[block_id] += 1\n        request.block_table.sort(reverse=True)\n",
            ),
        ),
        "says yes or no": _but(_BROKEN, ("    return found\n", "    return bool(found)\n")),
    },
}
