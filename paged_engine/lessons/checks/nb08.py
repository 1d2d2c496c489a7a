"""Checks of notebook 08: who is let in, what a step does and says, and that nothing is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from paged_engine.errors import InvalidRequestError, InvariantError
from paged_engine.events import Event
from paged_engine.lessons.exercises import NotYet, exercise, expect
from paged_engine.lessons.solutions import nb05, nb06
from paged_engine.lessons.solutions import nb08 as lesson

_MOST_STEPS = 300
_Engine: Any = lesson.Engine  # as it stands in the notebook, where nothing is annotated
_Pool: Any = nb06.BlockPool

Function = Callable[..., Any]


# ------------------------------------------------------------------ 08.1


@exercise("08.1", "whoever can be served stands at the door, and whoever cannot is told at once")
def check_add(add: Function) -> None:
    """Who is taken, what is kept of them, and who is refused."""
    engine = _engine(8, add=add)
    prompt = [5, 6, 7]
    engine.add("A", prompt, 4, {9})
    when = "a pool of 8 blocks of 4, add A with a prompt of 3, max_tokens 4"
    door = "a Request goes to the end of self.door, and under its id into self.requests"
    expect([r.request_id for r in engine.door], ["A"], f"{when}, self.door", door)
    expect(list(engine.requests), ["A"], f"{when}, self.requests", door)
    request = engine.requests["A"]
    expect(request.token_ids, [5, 6, 7], f"{when}, token_ids")
    expect((request.max_tokens, set(request.eos_token_ids)), (4, {9}), f"{when}, its limits")
    table = "give it an empty table of this pool: request.table = self.BlockTable(self.pool)"
    if getattr(request, "table", None) is None:
        raise NotYet("a BlockTable", "none", f"{when}, its table", table)
    expect(list(request.block_table), [], f"{when}, block_table", table)
    expect(request.table.pool is engine.pool, True, f"{when}, its table is of this pool", table)
    engine.add("B", [1], 1)
    expect([r.request_id for r in engine.door], ["A", "B"], "then B, self.door", door)
    expect(engine.pool.num_free, 8, "then B, num_free of the pool", "nobody at the door has blocks")
    expect(len(engine.inside), 0, "then B, who is inside", "letting in comes later: see let_in")
    wanted = _engine(8)
    wanted.add("A", prompt, 4, {9})
    wanted.add("B", [1], 1)
    _same_log(engine, wanted, "A and B were added")
    _refusals(add)


def _refusals(add: Function) -> None:
    fits = "with max_tokens of output, the last of which is never computed: see most_blocks"
    cases = [
        ("its id is taken", ("A", [1], 1), "look into self.requests first"),
        ("its prompt is empty", ("B", [], 4), "there is nothing to compute"),
        ("a prompt of 30 and 4 tokens, which is 33 to keep", ("B", [1] * 30, 4), fits),
        ("a prompt of 1 and 33 tokens, which is 33 to keep", ("B", [1], 33), fits),
    ]
    for why, arguments, hint in cases:
        engine = _engine(8, add=add)
        engine.add("A", [5, 6, 7], 4)
        when = f"a pool of 8 blocks of 4, A is there, add {arguments[0]}: {why}"
        try:
            engine.add(*arguments)
        except InvalidRequestError:
            pass
        else:
            raise NotYet("InvalidRequestError", "no error", when, hint)
        left = "whoever is refused leaves nothing behind: ask first, then change"
        expect([r.request_id for r in engine.door], ["A"], f"{when}, self.door", left)
        expect(list(engine.requests), ["A"], f"{when}, self.requests", left)
        expect(len(engine.log), 2, f"{when}, events in the log", left)
    for arguments in (("B", [1] * 30, 3), ("B", [1], 32)):
        engine = _engine(8, add=add)
        when = f"a pool of 8 blocks of 4, add a prompt of {len(arguments[1])}, {arguments[2]} more"
        try:
            engine.add(*arguments)
        except InvalidRequestError as problem:
            just = f"32 tokens are kept, which just fits; {fits}"
            raise NotYet("no error", f"InvalidRequestError: {problem}", when, just) from problem


# ------------------------------------------------------------------ 08.2


@exercise("08.2", "first come, first served, and nobody inside will ever lack a block")
def check_let_in(let_in: Function) -> None:
    """Who is let in, who is not, and who waits behind somebody who is not."""
    inside = "who is let in moves from self.door to the end of self.inside, and to scheduler.add"
    total = "what all inside may need, the newcomer too, must not be more than pool.num_blocks"
    line = "nobody overtakes: when the first at the door does not fit, stop"
    # name: prompt, max_tokens; blocks of 4, so A and B may need 3 each, C 2, D 1
    a, b, c, d = ("A", 6, 7), ("B", 9, 4), ("C", 5, 4), ("D", 1, 4)
    cases = [
        (8, [], [a, b, c], "ABC", "exactly 8 of 8 are needed", total),
        (7, [], [a, b, c], "AB", "A and B may need 6 of 7, and C 2", total),
        (7, [], [a, b, c, d], "AB", "C does not fit, D behind it would", line),
        (8, [a, b], [d, c], "ABD", "A and B are inside and may need 6 of 8", total),
        (3, [], [a], "A", "one needs the whole pool", total),
        (6, [a, b], [d], "AB", "those inside may need it all", total),
    ]
    for num_blocks, before, door, wanted, why, hint in cases:
        engine = _engine(num_blocks, let_in=let_in)
        for group in (before, door):
            for name, prompt, most in group:
                engine.add(name, [1] * prompt, most)
            if group is before:
                _Engine.let_in(engine)
        names = "".join(r.request_id for r in engine.door)
        when = f"{num_blocks} blocks of 4, inside {len(before)}, at the door {names}: {why}"
        engine.let_in()
        expect("".join(r.request_id for r in engine.inside), wanted, f"{when}, self.inside", hint)
        waiting = "".join(r.request_id for r in engine.scheduler.waiting)
        expect(waiting, wanted, f"{when}, scheduler.waiting", inside)
        left = "".join(name for name, *_ in (*before, *door) if name not in wanted)
        expect("".join(r.request_id for r in engine.door), left, f"{when}, self.door", inside)
        promise = "letting in only counts; blocks are taken when they are needed"
        expect(engine.pool.num_free, num_blocks, f"{when}, num_free", promise)
        engine.let_in()
        again = f"{when}, and let_in once more, self.inside"
        expect("".join(r.request_id for r in engine.inside), wanted, again, inside)


# ------------------------------------------------------------------ 08.3


@exercise("08.3", "every event in its place, every token, and the pool empty at the end")
def check_step(step: Function) -> None:
    """Runs by hand and by chance, event by event against the lesson's own."""
    own, right = _engine(16, seats=3, step=step), _engine(16, seats=3)
    for engine in (own, right):
        for name, prompt, most in (("A", 9, 3), ("B", 5, 1), ("C", 2, 6), ("D", 12, 2)):
            engine.add(name, [1] * prompt, most)
    about = "blocks of 4, seats 3, budget 16; A, B, C and D have prompts of 9, 5, 2 and 12"
    _walk(own, right, about)
    idle = _engine(8, step=step)
    when = "nobody is there, step() returned"
    nobody = "a step may have nobody to serve: do not ask the model then, and return {}"
    _returned(idle.step(), {}, when, nobody)
    for seed in range(25):
        _random_run(step, seed)


def _random_run(step: Function, seed: int) -> None:
    draw = random.Random(seed)
    size, seats, budget = draw.randint(4, 14), draw.randint(1, 4), draw.randint(2, 16)
    own = _engine(size, seats=seats, budget=budget, step=step)
    right = _engine(size, seats=seats, budget=budget)
    crowd = [(draw.randint(1, 14), draw.randint(1, 6)) for _ in range(draw.randint(1, 7))]
    crowd = [(prompt, most) for prompt, most in crowd if prompt + most - 1 <= 4 * size]
    late = [draw.randint(0, 5) for _ in crowd]
    told = ", ".join(f"{p}+{m}" for p, m in crowd)
    about = f"{size} blocks of 4, seats {seats}, budget {budget}, prompt+answer {told}"
    _walk(own, right, about, list(zip(crowd, late, strict=True)))


def _walk(own: Any, right: Any, about: str, coming: list[Any] | None = None) -> None:
    """Step by step to the end; `coming` is ((prompt, most), step after which it is added)."""
    coming = coming or []
    for number in range(_MOST_STEPS):
        for place, ((prompt, most), after) in enumerate(coming):
            if after == number:
                for engine in (own, right):
                    engine.add(str(place), [1] * prompt, most)
        if not (right.door or right.inside) and all(after <= number for _, after in coming):
            break
        when = f"{about}, step {number + 1}"
        scheduled = right.step() or {}
        got = own.step()
        _same_log(own, right, when)
        wanted = {r.request_id: n for r, n in scheduled.items()}
        _returned(got, wanted, f"{when}, what it returned", "return what schedule() gave")
        expect(own.pool.num_free, right.pool.num_free, f"{when}, num_free", _released)
        inside = [r.request_id for r in right.inside]
        expect([r.request_id for r in own.inside], inside, f"{when}, self.inside", _released)
    gone = f"{about}, at the end"
    expect(own.pool.num_free, own.pool.num_blocks, f"{gone}, num_free", _released)
    for name, request in right.requests.items():
        expect(own.requests[name].token_ids, request.token_ids, f"{gone}, tokens of {name}")


_released = "who has finished releases its table and leaves self.inside"


def _returned(got: Any, wanted: dict[str, int], when: str, hint: str) -> None:
    if not isinstance(got, dict):
        raise NotYet(wanted, got, when, hint)
    expect({r.request_id: n for r, n in got.items()}, wanted, when, hint)


# ------------------------------------------------------------------ 08.4


@exercise("08.4", "it ends when nobody is left, and raises where it would never end")
def check_run(run: Function) -> None:
    """What it returns, and that it does not go on for ever."""
    engine = _engine(16, run=run)
    for name, prompt, most in (("A", 9, 3), ("B", 5, 1), ("C", 2, 6)):
        engine.add(name, [1] * prompt, most)
    when = "A, B and C ask for 3, 1 and 6 tokens"
    new = "for each id the tokens behind its prompt, as a list"
    answers = {"A": [100, 101, 102], "B": [100], "C": [100, 101, 102, 103, 104, 105]}
    expect(engine.run(), answers, when, new)
    expect((len(engine.door), len(engine.inside)), (0, 0), f"{when}, who is left")
    engine.add("D", [1, 2], 2)
    when = f"{when}; when all is over D comes, and run() is called again"
    expect(engine.run(), answers | {"D": [100, 101]}, when, "everybody who ever came")
    expect(_engine(4, run=run).run(), {}, "nobody ever came")
    full = _engine(4, run=run)
    for name in "AB":
        full.add(name, [1] * 9, 8)  # one fits, the other waits at the door
    door = "somebody may wait at the door while nobody waits inside: ask for both"
    wanted = {name: list(range(100, 108)) for name in "AB"}
    expect(full.run(), wanted, "A fits into the pool, B waits at the door", door)
    stuck = _engine(8, budget=0, run=run)
    stuck.add("A", [1, 2, 3], 4)
    when = "the budget is 0, so that no step serves anybody"
    ever = "if step() returns an empty dict, raise InvariantError"
    try:
        got = stuck.run()
    except InvariantError:
        return
    raise NotYet("InvariantError", got, when, ever)


# ------------------------------------------------------------------ what they share


def _fake_model(scheduled: Any) -> dict[str, int]:
    """100, 101, 102, ... for everyone who has caught up."""
    for request, num_tokens in scheduled.items():
        room = 4 * len(request.block_table)
        end = request.num_computed_tokens + num_tokens
        if room < end:
            name = f"{request.request_id} computes up to {end} tokens"
            raise NotYet(
                f"blocks for {end}", f"{len(request.block_table)} blocks of 4", name,
                "request.table.grow(...) for everybody in the batch, before the model is asked",
            )  # fmt: skip
    if not scheduled:
        raise NotYet("no call", "a call", "nobody is in the batch: the model", "there is no batch")
    return {
        request.request_id: 100 + request.num_output_tokens
        for request, n in scheduled.items()
        if request.num_computed_tokens + n == request.num_tokens
    }


def _engine(num_blocks: int, *, seats: int = 4, budget: int = 16, **methods: Function) -> Any:
    """The lesson's engine with the methods under test, and a model that counts."""
    kind = type("Engine", (_Engine,), methods)
    return kind(nb05.Scheduler(seats, budget), _Pool(num_blocks, 4), _fake_model)


def _same_log(own: Any, right: Any, when: str) -> None:
    """Every event of the last step, in order."""
    for place, wanted in enumerate(right.log):
        if place >= len(own.log):
            raise NotYet(_told(wanted), "no more events", f"{when}, event {place}", _order)
        if own.log[place] != wanted:
            got = _told(own.log[place])
            raise NotYet(_told(wanted), got, f"{when}, event {place}", _order)
    if len(own.log) > len(right.log):
        got = _told(own.log[len(right.log)])
        raise NotYet("no more events", got, f"{when}, event {len(right.log)}", _order)


_order = "look at the table of events above: what is said by whom, with what, and in which order"


def _told(event: Event) -> str:
    """An event without its time and step."""
    slots = [name for name in getattr(event, "__slots__", ()) if name not in ("time", "step")]
    details = ", ".join(f"{name}={getattr(event, name)!r}" for name in slots)
    return f"{event.kind} in step {event.step} ({details})"
