"""Solutions of notebook 08: an engine, made of what notebooks 04 to 07 built.

The classes that the notebook gives are here as they stand there, so that with notebooks 04 to 07
this is all of a reader's engine.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, attr-defined, var-annotated, call-arg"

from __future__ import annotations

from collections import deque

import torch

from paged_engine.batch import pack
from paged_engine.errors import InvalidRequestError, InvariantError
from paged_engine.events import EVENT_TYPES, EventLog
from paged_engine.kv_cache import PagedKVCache
from paged_engine.lessons.growing import add_to_class
from paged_engine.lessons.solutions import nb04, nb05, nb06, nb07
from paged_engine.lessons.solutions.nb06 import BlockTable
from paged_engine.lessons.solutions.nb07 import slot_mapping


class Request(nb04.Request):
    """That of notebook 04, and now with a place in memory."""

    @property
    def block_table(self):
        return self.table.block_ids


class Log(EventLog):
    """The package's list of typed events; `say` writes one into the present step."""

    step = 0

    def say(self, kind, request=None, **details):
        if request is not None:
            details["request_id"] = request.request_id
        self.append(EVENT_TYPES[kind](0.0, self.step, **details))  # at time 0.0


class PagedModel:
    """From the requests of a step to their next tokens."""

    def __init__(self, runner, pool):
        self.runner, shape = runner, (runner.kv_shape, pool.num_blocks, pool.block_size)
        self.cache = PagedKVCache(*shape, dtype=runner.dtype, device=runner.device)

    def __call__(self, scheduled):
        batch = pack(scheduled, self.cache.block_size, self.runner.device)
        slots = slot_mapping(scheduled, self.cache.block_size)
        batch.slot_mapping = torch.tensor(slots, device=self.runner.device)
        logits, sampled = self.runner.forward(batch, self.cache), {}
        for row, (request, num_tokens) in zip(logits, scheduled.items(), strict=True):
            if request.num_computed_tokens + num_tokens == request.num_tokens:
                sampled[request.request_id] = int(row.argmax())
        return sampled


class Engine:
    """Requests in, tokens out; `add`, `let_in`, `step` and `run` join it below."""

    Request, BlockTable = Request, BlockTable  # what `add` makes

    def __init__(self, scheduler, pool, model):
        self.scheduler, self.pool = scheduler, pool
        self.model = model  # {request: number of tokens} to {request_id: token}
        self.requests = {}  # all that ever came, by id
        self.door = deque()  # who is not let in yet
        self.inside = []  # who is let in, and has not ended
        limits = (scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        self.log = Log()
        started = EVENT_TYPES["engine_started"]
        self.log.append(started(0.0, 0, pool.num_blocks, pool.block_size, *limits))

    def most_blocks(self, request):
        """What it holds at its end; its last token is never computed."""
        most = request.num_prompt_tokens + request.max_tokens - 1
        return -(-most // self.pool.block_size)


def add(self, request_id, prompt_token_ids, max_tokens, eos_token_ids=()):
    """Put a request at the door; one that can never be served is refused."""
    request = self.Request(request_id, prompt_token_ids, max_tokens, eos_token_ids)
    if request_id in self.requests or not request.token_ids:
        raise InvalidRequestError(f"{request_id} is taken, or its prompt is empty")
    if self.most_blocks(request) > self.pool.num_blocks:
        raise InvalidRequestError(f"{request_id} needs more blocks than there are")
    request.table = self.BlockTable(self.pool)
    self.requests[request_id] = request
    self.door.append(request)
    prompt = tuple(request.token_ids)
    details = {"prompt_token_ids": prompt, "max_tokens": max_tokens}
    self.log.say("queued", request, **details, priority=0, seed=0)


def let_in(self):
    """Hand to the scheduler whom the pool can serve to the end, beside all inside."""
    promised = sum(self.most_blocks(request) for request in self.inside)
    while self.door:
        promised += self.most_blocks(self.door[0])
        if promised > self.pool.num_blocks:
            return
        request = self.door.popleft()
        self.inside.append(request)
        self.scheduler.add(request)


def step(self):
    """Who computes what, where it lies, what the model says, and who is done."""
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


def run(self):
    """Step until nobody is left; the new tokens of everybody who ever came."""
    while self.door or self.inside:
        if not self.step():
            raise InvariantError("a step served nobody; it would go on so for ever")
    return {
        name: request.token_ids[request.num_prompt_tokens :]
        for name, request in self.requests.items()
    }


add_to_class(Engine)(add)
add_to_class(Engine)(let_in)
add_to_class(Engine)(step)
add_to_class(Engine)(run)

# All of a reader's engine, by what it is for.
PARTS = {
    "request": (nb04.Request, nb04.set_status, nb04.append_token, Request),
    "scheduler": (nb05.Scheduler, nb05.schedule, nb05.update),
    "memory": (nb06.BlockPool, nb06.BlockTable, nb07.slot_mapping),
    "attention": (nb07.online_attention, nb07.paged_attention),
    "model's side": (PagedModel,),
    "engine": (Log, Engine, add, let_in, step, run),
}
