"""What the tests know of notebook 08."""

TIMING_CELLS: list[str] = []

_ADD = """\
def add(self, request_id, prompt_token_ids, max_tokens, eos_token_ids=()):
    request = self.Request(request_id, prompt_token_ids, max_tokens, eos_token_ids)
    if request_id in self.requests or not request.token_ids:
        raise InvalidRequestError("taken or empty")
    if self.most_blocks(request) > self.pool.num_blocks:
        raise InvalidRequestError("too large")
    request.table = self.BlockTable(self.pool)
    self.requests[request_id] = request
    self.door.append(request)
    details = {"prompt_token_ids": tuple(request.token_ids), "max_tokens": max_tokens}
    self.log.say("queued", request, **details, priority=0, seed=0)
"""

_LET_IN = """\
def let_in(self):
    promised = sum(self.most_blocks(request) for request in self.inside)
    while self.door:
        promised += self.most_blocks(self.door[0])
        if promised > self.pool.num_blocks:
            return
        request = self.door.popleft()
        self.inside.append(request)
        self.scheduler.add(request)
"""

_STEP = """\
def step(self):
    say = self.log.say
    self.log.step += 1
    say("step_began", budget=self.scheduler.max_num_batched_tokens)
    self.let_in()
    scheduled = self.scheduler.schedule()
    starts = {request: request.num_computed_tokens for request in scheduled}
    for request, num_tokens in scheduled.items():
        if starts[request] == 0:
            say("admitted", request)
        before = len(request.block_table)
        request.table.grow(starts[request] + num_tokens)
        if new := tuple(request.block_table[before:]):
            say("allocated", request, block_ids=new)
    for request, num_tokens in scheduled.items():
        say("scheduled", request, start=starts[request], num_tokens=num_tokens)
    sampled = self.model(scheduled) if scheduled else {}
    self.scheduler.update(scheduled, sampled)
    for request in scheduled:
        if request.request_id in sampled:
            say("token", request, token_id=sampled[request.request_id])
        else:
            say("computed", request, num_computed_tokens=request.num_computed_tokens)
        if request.is_finished:
            say("freed", request, block_ids=tuple(request.block_table))
            request.table.release()
            say("finished", request, reason=request.status.value)
            self.inside.remove(request)
    say("step_ended", num_tokens=sum(scheduled.values()))
    return scheduled
"""

_RUN = """\
def run(self):
    while self.door or self.inside:
        if not self.step():
            raise InvariantError("nobody was served")
    return {n: r.token_ids[r.num_prompt_tokens :] for n, r in self.requests.items()}
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "08.1": {
        "takes whoever comes": _but(
            _ADD, ("if self.most_blocks(request) > self.pool.num_blocks", "if False")
        ),
        "asks what is free now": _but(
            _ADD,
            ("    request.table", "    self.pool.allocate(1)\n    request.table"),
            ("self.pool.num_blocks", "self.pool.num_free"),
        ),
        "counts the last token": _but(
            _ADD,
            (
                "self.most_blocks(request) > self.pool.num_blocks",
                "request.num_tokens + max_tokens > 4 * self.pool.num_blocks",
            ),
        ),
        "counts the prompt alone": _but(
            _ADD,
            (
                "self.most_blocks(request) > self.pool.num_blocks",
                "request.num_tokens > 4 * self.pool.num_blocks",
            ),
        ),
        "refuses and keeps": _but(
            _ADD,
            (
                "    if self.most",
                "    self.requests.setdefault(request_id, request)\n    if self.most",
            ),
        ),
        "an id twice": _but(_ADD, ("request_id in self.requests or ", "")),
        "an empty prompt": _but(_ADD, (" or not request.token_ids", "")),
        "no table": _but(_ADD, ("    request.table = self.BlockTable(self.pool)\n", "")),
        "lets in at once": _but(
            _ADD, ("self.door.append(request)", "self.door.append(request)\n    self.let_in()")
        ),
        "says nothing": _but(
            _ADD, ('    self.log.say("queued", request, **details, priority=0, seed=0)\n', "")
        ),
        "the newest first": _but(_ADD, ("door.append(", "door.appendleft(")),
        "forgets the end of a text": _but(
            _ADD, ("max_tokens, eos_token_ids)\n    if", "max_tokens)\n    if")
        ),
    },
    "08.2": {
        "everybody": _but(
            _LET_IN, ("        if promised > self.pool.num_blocks:\n            return\n", "")
        ),
        "counts what is free, not what is promised": _but(
            _LET_IN,
            ("sum(self.most_blocks(request) for request in self.inside)", "0"),
            ("self.pool.num_blocks", "self.pool.num_free"),
        ),
        "forgets who is inside": _but(
            _LET_IN, ("sum(self.most_blocks(request) for request in self.inside)", "0")
        ),
        "forgets whom it has just let in": _but(
            _LET_IN,
            (
                "        promised += self.most_blocks(self.door[0])\n        if promised >",
                "        if promised + self.most_blocks(self.door[0]) >",
            ),
        ),
        "one block is always left": _but(_LET_IN, ("promised > ", "promised >= ")),
        "lets others overtake": """\
def let_in(self):
    promised = sum(self.most_blocks(request) for request in self.inside)
    for request in list(self.door):
        if promised + self.most_blocks(request) <= self.pool.num_blocks:
            promised += self.most_blocks(request)
            self.door.remove(request)
            self.inside.append(request)
            self.scheduler.add(request)
""",
        "takes the blocks at once": _but(
            _LET_IN,
            (
                "        self.inside.append",
                "        request.table.grow(4 * self.most_blocks(request))\n"
                "        self.inside.append",
            ),
        ),
        "one in each step": _but(_LET_IN, ("    while self.door:", "    if self.door:")),
        "leaves them at the door": _but(
            _LET_IN,
            ("    while self.door:\n", "    for request in self.door:\n"),
            ("self.most_blocks(self.door[0])", "self.most_blocks(request)"),
            ("        request = self.door.popleft()\n", ""),
        ),
        "keeps it from the scheduler": _but(_LET_IN, ("        self.scheduler.add(request)\n", "")),
        "forgets that they are inside": _but(
            _LET_IN, ("        self.inside.append(request)\n", "")
        ),
    },
    "08.3": {
        "nobody is let in": _but(_STEP, ("    self.let_in()\n", "")),
        "lets in after the scheduler": _but(
            _STEP,
            (
                "    self.let_in()\n    scheduled = self.scheduler.schedule()\n",
                "    scheduled = self.scheduler.schedule()\n    self.let_in()\n",
            ),
        ),
        "no blocks": _but(
            _STEP, ("        request.table.grow(starts[request] + num_tokens)\n", "")
        ),
        "blocks for what is computed already": _but(
            _STEP, ("grow(starts[request] + num_tokens)", "grow(starts[request])")
        ),
        "blocks for all it knows": _but(
            _STEP, ("grow(starts[request] + num_tokens)", "grow(request.num_tokens + 1)")
        ),
        "keeps the blocks of who is done": _but(
            _STEP, ("            request.table.release()\n", "")
        ),
        "releases before it says so": _but(
            _STEP,
            (
                '            say("freed", request, block_ids=tuple(request.block_table))\n'
                "            request.table.release()\n",
                "            request.table.release()\n"
                '            say("freed", request, block_ids=tuple(request.block_table))\n',
            ),
        ),
        "who is done stays inside": _but(_STEP, ("            self.inside.remove(request)\n", "")),
        "finished before freed": _but(
            _STEP,
            ('            say("finished", request, reason=request.status.value)\n', ""),
            (
                '            say("freed"',
                '            say("finished", request, reason=request.status.value)\n'
                '            say("freed"',
            ),
        ),
        "admitted is said of everybody": _but(
            _STEP,
            (
                "        if starts[request] == 0:\n            say(",
                "        if True:\n            say(",
            ),
        ),
        "new blocks are all blocks": _but(
            _STEP, ("request.block_table[before:]", "request.block_table")
        ),
        "the start is where it ends": _but(
            _STEP,
            (
                "    for request, num_tokens in scheduled.items():\n"
                '        say("scheduled", request, start=starts[request], num_tokens=num_tokens)\n',
                "",
            ),
            (
                "    for request in scheduled:\n",
                "    for request, num_tokens in scheduled.items():\n"
                '        say("scheduled", request, start=request.num_computed_tokens, '
                "num_tokens=num_tokens)\n"
                "    for request in scheduled:\n",
            ),
        ),
        "events of one request together": _but(
            _STEP,
            (
                '    for request, num_tokens in scheduled.items():\n        say("scheduled"',
                '        say("scheduled"',
            ),
        ),
        "a chunk says nothing": _but(
            _STEP,
            (
                "        else:\n"
                '            say("computed", request, '
                "num_computed_tokens=request.num_computed_tokens)\n",
                "",
            ),
        ),
        "the scheduler is told nothing": _but(
            _STEP, ("    self.scheduler.update(scheduled, sampled)\n", "")
        ),
        "asks the model for nobody": _but(_STEP, (" if scheduled else {}", "")),
        "the step has no number": _but(_STEP, ("    self.log.step += 1\n", "")),
        "returns nothing": _but(_STEP, ("    return scheduled\n", "")),
        "counts requests, not tokens": _but(_STEP, ("sum(scheduled.values())", "len(scheduled)")),
    },
    "08.4": {
        "one step": _but(
            _RUN,
            (
                "    while self.door or self.inside:\n        if not",
                "    if True:\n        if self.door and not",
            ),
        ),
        "looks only inside": _but(_RUN, ("self.door or self.inside", "self.inside")),
        "looks only at the door": _but(_RUN, ("self.door or self.inside", "self.door")),
        "never ends": _but(
            _RUN,
            (
                "        if not self.step():\n"
                '            raise InvariantError("nobody was served")\n',
                "        self.step()\n",
            ),
        ),
        "gives up quietly": _but(_RUN, ('raise InvariantError("nobody was served")', "break")),
        "prompt and all": _but(_RUN, ("[r.num_prompt_tokens :]", "")),
        "a token is lost": _but(_RUN, ("r.num_prompt_tokens :", "r.num_prompt_tokens : -1")),
        "requests in place of tokens": _but(_RUN, ("r.token_ids[r.num_prompt_tokens :]", "r")),
    },
}
