"""What the tests know of notebook 05."""

TIMING_CELLS: list[str] = []

_RIGHT = """\
def schedule(self):
    scheduled = {}
    budget = self.max_num_batched_tokens
    for place, request in enumerate(self.running):
        if budget == 0:
            break
        behind = len(self.running) - place - 1
        left = request.num_tokens - request.num_computed_tokens
        scheduled[request] = min(left, max(1, budget - behind))
        budget -= scheduled[request]
    while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
        request = self.waiting.popleft()
        request.set_status(RequestStatus.RUNNING)
        self.running.append(request)
        left = request.num_tokens - request.num_computed_tokens
        scheduled[request] = min(left, budget)
        budget -= scheduled[request]
    return scheduled
"""

_UPDATE = """\
def update(self, scheduled, sampled):
    finished = []
    for request, num_tokens in scheduled.items():
        if request.is_finished:
            continue
        request.num_computed_tokens += num_tokens
        if request.request_id in sampled:
            request.append_token(sampled[request.request_id])
        if request.is_finished:
            finished.append(request)
    self.running = [r for r in self.running if not r.is_finished]
    return finished
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "05.1": {
        "forgets the seats": _but(_RIGHT, (" and len(self.running) < self.max_num_seqs", "")),
        "forgets the budget": _but(
            _RIGHT,
            ("min(left, max(1, budget - behind))", "left"),
            ("min(left, budget)", "left"),
            (" and budget > 0", ""),
        ),
        "computes no prompt in pieces": _but(
            _RIGHT,
            ("        request = self.waiting.popleft()\n", "        request = self.waiting[0]\n"),
            (
                "        request.set_status(",
                "        if request.num_tokens > budget:\n"
                "            break\n"
                "        self.waiting.popleft()\n"
                "        request.set_status(",
            ),
        ),
        "leaves nothing for those behind": _but(
            _RIGHT, ("min(left, max(1, budget - behind))", "min(left, budget)")
        ),
        "leaves tokens for others when none is left for oneself": _but(
            _RIGHT,
            (
                "        scheduled[request] = min(left, max(1, budget - behind))\n"
                "        budget -= scheduled[request]\n"
                "    while",
                "        if budget > behind:\n"
                "            scheduled[request] = min(left, budget - behind)\n"
                "            budget -= scheduled[request]\n"
                "    while",
            ),
        ),
        "takes the last in line first": _but(_RIGHT, ("popleft()", "pop()")),
        "gives out tokens that a lowered budget has not": _but(
            _RIGHT, ("        if budget == 0:\n            break\n", "")
        ),
        "does not set RUNNING": _but(
            _RIGHT, ("        request.set_status(RequestStatus.RUNNING)\n", "")
        ),
        "forgets whom it admitted": _but(_RIGHT, ("        self.running.append(request)\n", "")),
        "starts every prompt anew": _but(
            _RIGHT,
            (
                "        scheduled[request] = min(left, max(1, budget - behind))\n",
                "        left = request.num_prompt_tokens if not request.num_output_tokens else 1\n"
                "        scheduled[request] = min(left, max(1, budget - behind))\n",
            ),
        ),
        "serves newcomers first": """\
def schedule(self):
    scheduled = {}
    budget = self.max_num_batched_tokens
    old = list(self.running)
    while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
        request = self.waiting.popleft()
        request.set_status(RequestStatus.RUNNING)
        self.running.append(request)
        scheduled[request] = min(request.num_tokens, budget)
        budget -= scheduled[request]
    for request in old:
        left = min(budget, request.num_tokens - request.num_computed_tokens)
        if left:
            scheduled[request] = left
            budget -= left
    return scheduled
""",
        "names instead of requests": _but(
            _RIGHT,
            ("    return scheduled", "    return {r.request_id: n for r, n in scheduled.items()}"),
        ),
        "returns nothing": _but(_RIGHT, ("    return scheduled\n", "")),
        "zeros for who gets nothing": _but(
            _RIGHT,
            ("    return scheduled", "    return scheduled | dict.fromkeys(self.waiting, 0)"),
        ),
        "counts as computed what is only planned": _but(
            _RIGHT,
            (
                "    return scheduled",
                "    for r, n in scheduled.items():\n"
                "        r.num_computed_tokens += n\n"
                "    return scheduled",
            ),
        ),
        "ends never": _but(_RIGHT, (" and budget > 0 and", " or"), ("popleft()", "pop")).replace(
            "request.set_status(RequestStatus.RUNNING)", "continue"
        ),
        "knows no self": _but(_RIGHT, ("self.waiting.popleft()", "waiting.pop(0)")),
    },
    "05.2": {
        "removes from the list it walks along": """\
def update(self, scheduled, sampled):
    finished = []
    for request in self.running:
        if request not in scheduled:
            continue
        request.num_computed_tokens += scheduled[request]
        if request.request_id in sampled:
            request.append_token(sampled[request.request_id])
        if request.is_finished:
            finished.append(request)
            self.running.remove(request)
    return finished
""",
        "removes finished ones in a second walk": _but(
            _UPDATE,
            (
                "    self.running = [r for r in self.running if not r.is_finished]\n",
                "    for request in self.running:\n"
                "        if request.is_finished:\n"
                "            self.running.remove(request)\n",
            ),
        ),
        "keeps who is finished": _but(
            _UPDATE, ("    self.running = [r for r in self.running if not r.is_finished]\n", "")
        ),
        "does not count what was computed": _but(
            _UPDATE, ("        request.num_computed_tokens += num_tokens\n", "")
        ),
        "counts one token each": _but(_UPDATE, ("+= num_tokens", "+= 1")),
        "appends a token twice": _but(
            _UPDATE,
            (
                "            request.append_token(sampled[request.request_id])\n",
                "            request.token_ids.append(sampled[request.request_id])\n"
                "            request.append_token(sampled[request.request_id])\n",
            ),
        ),
        "expects a token for everybody": _but(
            _UPDATE, ("        if request.request_id in sampled:\n    ", "")
        ),
        "takes the token 0 for none": _but(
            _UPDATE,
            ("if request.request_id in sampled:", "if sampled.get(request.request_id):"),
        ),
        "ends at who was aborted": _but(_UPDATE, ("continue", "break")),
        "gives a token to who was aborted": _but(
            _UPDATE, ("        if request.is_finished:\n            continue\n", "")
        ),
        "returns names": _but(
            _UPDATE, ("finished.append(request)", "finished.append(request.request_id)")
        ),
        "returns nothing": _but(_UPDATE, ("    return finished\n", "")),
        "keeps only who was scheduled": _but(
            _UPDATE,
            (
                "[r for r in self.running if not r.is_finished]",
                "[r for r in scheduled if not r.is_finished]",
            ),
        ),
        "uses up its argument": _but(
            _UPDATE, ("sampled[request.request_id]", "sampled.pop(request.request_id)")
        ),
    },
    "05.3": {
        "counts static batches": """\
def steps_continuous(lengths, seats):
    groups = [lengths[i : i + seats] for i in range(0, len(lengths), seats)]
    return sum(max(group) for group in groups)
""",
        "spreads the work evenly": """\
def steps_continuous(lengths, seats):
    return max(max(lengths), -(-sum(lengths) // seats))
""",
        "takes the longest first": """\
def steps_continuous(lengths, seats):
    free_after = [0] * seats
    for length in sorted(lengths, reverse=True):
        first = free_after.index(min(free_after))
        free_after[first] += length
    return max(free_after)
""",
        "gives seats out in turn": """\
def steps_continuous(lengths, seats):
    free_after = [0] * seats
    for number, length in enumerate(lengths):
        free_after[number % seats] += length
    return max(free_after)
""",
        "empties the list that it was given": """\
def steps_continuous(lengths, seats):
    free_after = [0] * seats
    while lengths:
        first = free_after.index(min(free_after))
        free_after[first] += lengths.pop(0)
    return max(free_after)
""",
        "prints and returns nothing": """\
def steps_continuous(lengths, seats):
    print(max(lengths))
""",
    },
}
