"""What the tests know of notebook 10."""

TIMING_CELLS = [
    "from paged_engine.benchmark.machine import this_machine",
    'PATHS = {"naive": naive, "static": static}',
    "weights = sum(p.numel() for p in model.parameters()) - model.lm_head.weight.numel()",
    "steps = [step for _ in range(2) for step in run_metrics(ask(fused)[0].log).steps]",
    "from paged_engine.benchmark.__main__ import main",
]

_LATENCIES = """\
from itertools import pairwise


def latencies(events, due):
    came, times = {}, {}
    for event in events:
        if event.kind == "queued":
            came[event.request_id] = due.get(event.request_id, event.time)
            times[event.request_id] = []
        elif event.kind == "token":
            times[event.request_id].append(event.time)
    served = {}
    for name, at in times.items():
        ttft = at[0] - came[name] if at else None
        itls = [later - earlier for earlier, later in pairwise(at)]
        tpot = sum(itls) / len(itls) if itls else None
        served[name] = (ttft, tpot, itls)
    return served
"""

_PERCENTILE = """\
import math


def percentile(values, percent):
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))
"""

_POISSON = """\
import random
from itertools import accumulate


def poisson(num_requests, rate, seed):
    draw = random.Random(seed)
    return list(accumulate(draw.expovariate(rate) for _ in range(num_requests)))
"""

_OPEN_LOOP = """\
from collections import deque


def open_loop(engine, jobs, arrivals, clock, wait):
    start, due = clock(), {}
    coming = deque(zip(arrivals, jobs, strict=True))
    while coming or engine.has_unfinished:
        while coming and start + coming[0][0] <= clock():
            arrival, job = coming.popleft()
            name = engine.add_request(job.prompt_token_ids, job.params)
            due[name] = start + arrival
        if engine.has_unfinished:
            engine.step()
        else:
            wait(max(0, start + coming[0][0] - clock()))
    return due
"""


def _but(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


WRONG = {
    "10.1": {
        "counts from admission": _but(
            _LATENCIES,
            (
                '        elif event.kind == "token":\n',
                '        elif event.kind == "admitted":\n'
                "            came[event.request_id] = due.get(event.request_id, event.time)\n"
                '        elif event.kind == "token":\n',
            ),
        ),
        "counts from when it was handed over": _but(
            _LATENCIES, ("due.get(event.request_id, event.time)", "event.time")
        ),
        "takes due at 0 for not due": _but(
            _LATENCIES,
            ("due.get(event.request_id, event.time)", "due.get(event.request_id) or event.time"),
        ),
        "takes the last token for the first": _but(_LATENCIES, ("at[0] -", "at[-1] -")),
        "spreads the first token's wait over all": _but(
            _LATENCIES,
            (
                "sum(itls) / len(itls) if itls else None",
                "(at[-1] - came[name]) / len(at) if at else None",
            ),
        ),
        "divides by all tokens": _but(_LATENCIES, ("/ len(itls)", "/ len(at)")),
        "counts the first token among the ITLs": _but(
            _LATENCIES, ("pairwise(at)", "PAIRS")
        ).replace("PAIRS", "pairwise([came[name], *at])"),
        "has no entry for who got no token": _but(
            _LATENCIES,
            (
                "        ttft = at[0] - came[name] if at else None\n",
                "        if not at:\n            continue\n        ttft = at[0] - came[name]\n",
            ),
        ),
        "0 where there is no time": _but(
            _LATENCIES,
            ("came[name] if at else None", "came[name] if at else 0"),
            ("len(itls) if itls else None", "len(itls) if itls else 0"),
        ),
        "fails for a single token": _but(_LATENCIES, (" if itls else None", "")),
        "mixes the requests": _but(
            _LATENCIES,
            ("pairwise(at)]", "pairwise(sorted(sum(times.values(), [])))]"),
        ),
        "a tuple of ITLs": _but(_LATENCIES, ("(ttft, tpot, itls)", "(ttft, tpot, tuple(itls))")),
        "returns a list": _but(_LATENCIES, ("return served", "return list(served.values())")),
        "returns nothing": _but(_LATENCIES, ("    return served\n", "")),
        "uses up its argument": _but(
            _LATENCIES,
            ("due.get(event.request_id, event.time)", "due.pop(event.request_id, event.time)"),
        ),
    },
    "10.2": {
        "does not sort": _but(_PERCENTILE, ("sorted(values)", "list(values)")),
        "sorts the list that it was given": _but(
            _PERCENTILE, ("ordered = sorted(values)", "values.sort()\n    ordered = values")
        ),
        "takes the nearest below": _but(
            _PERCENTILE, ("low + (high - low) * (place - math.floor(place))", "low")
        ),
        "takes the nearest above": _but(
            _PERCENTILE, ("low + (high - low) * (place - math.floor(place))", "high")
        ),
        "counts one place too many": _but(
            _PERCENTILE,
            ("(len(ordered) - 1)", "len(ordered)"),
            ("ordered[math.ceil(place)]", "ordered[min(math.ceil(place), len(ordered) - 1)]"),
            ("ordered[math.floor(place)]", "ordered[min(math.floor(place), len(ordered) - 1)]"),
        ),
        "goes over the end": _but(_PERCENTILE, ("math.ceil(place)", "math.floor(place) + 1")),
        "percent of the range of values": """\
def percentile(values, percent):
    return min(values) + (max(values) - min(values)) * percent / 100
""",
        "takes a share for a percentage": _but(_PERCENTILE, (" / 100", "")),
        "the mean": """\
def percentile(values, percent):
    return sum(values) / len(values)
""",
    },
    "10.3": {
        "evenly spaced": """\
def poisson(num_requests, rate, seed):
    return [(number + 1) / rate + seed * 1e-9 for number in range(num_requests)]
""",
        "gaps even between 0 and twice the mean": _but(
            _POISSON, ("draw.expovariate(rate)", "draw.uniform(0, 2 / rate)")
        ),
        "gaps with mean rate": _but(_POISSON, ("expovariate(rate)", "expovariate(1 / rate)")),
        "other strangers than those of the text": _but(
            _POISSON, ("random.Random(seed)", "random.Random(seed + 1)")
        ),
        "gaps in place of times": _but(
            _POISSON, ("list(accumulate(", "list(("), ("import accumulate", "import chain")
        ),
        "no seed": _but(_POISSON, ("random.Random(seed)", "random.Random()")),
        "always the same seed": _but(_POISSON, ("random.Random(seed)", "random.Random(0)")),
        "seeds everybody's generator": _but(
            _POISSON, ("draw = random.Random(seed)", "random.seed(seed)\n    draw = random")
        ),
        "one too few": _but(_POISSON, ("range(num_requests)", "range(num_requests - 1)")),
        "so many seconds in place of so many requests": """\
import random


def poisson(num_requests, rate, seed):
    draw = random.Random(seed)
    return sorted(draw.uniform(0, num_requests) for _ in range(num_requests))
""",
    },
    "10.4": {
        "a closed loop": _but(
            _OPEN_LOOP,
            (
                "        while coming and start + coming[0][0] <= clock():\n",
                "        if coming and not engine.has_unfinished and "
                "start + coming[0][0] <= clock():\n",
            ),
        ),
        "one a step": _but(_OPEN_LOOP, ("        while coming and", "        if coming and")),
        "only as many as there are seats": _but(
            _OPEN_LOOP,
            (
                "        while coming and",
                "        seats = engine.config.max_num_seqs\n"
                "        while len(engine.core.samples) < seats and coming and",
            ),
        ),
        "counts from when it was handed over": _but(
            _OPEN_LOOP, ("due[name] = start + arrival", "due[name] = clock()")
        ),
        "forgets when it began": _but(
            _OPEN_LOOP, ("start, due = clock(), {}", "start, due = 0, {}")
        ),
        "returns arrivals by the plan's own clock": _but(
            _OPEN_LOOP, ("due[name] = start + arrival", "due[name] = arrival")
        ),
        "all at once": _but(_OPEN_LOOP, (" and start + coming[0][0] <= clock()", "")),
        "leaves when the last is handed over": _but(
            _OPEN_LOOP, ("while coming or engine.has_unfinished:", "while coming:")
        ),
        "waits for the whole plan before it steps": _but(
            _OPEN_LOOP,
            ("        if engine.has_unfinished:\n", "        if not coming:\n"),
        ),
        "never waits": _but(
            _OPEN_LOOP, ("wait(max(0, start + coming[0][0] - clock()))", "engine.step()")
        ),
        "waits a whole second at a time": _but(
            _OPEN_LOOP, ("max(0, start + coming[0][0] - clock())", "1000")
        ),
        "waits for a time in the past": _but(
            _OPEN_LOOP,
            ("max(0, start + coming[0][0] - clock())", "start + coming[0][0] - clock()"),
        ),
        "numbers in place of names": _but(
            _OPEN_LOOP,
            (
                "            name = engine.add_request(job.prompt_token_ids, job.params)\n",
                "            engine.add_request(job.prompt_token_ids, job.params)\n"
                "            name = len(due)\n",
            ),
        ),
        "forgets how many tokens were asked for": _but(
            _OPEN_LOOP, ("job.prompt_token_ids, job.params", "job.prompt_token_ids")
        ),
        "uses up the plan": _but(
            _OPEN_LOOP,
            (
                "            arrival, job = coming.popleft()\n",
                "            arrival, job = coming.popleft()\n            arrivals.pop()\n",
            ),
        ),
        "returns nothing": _but(_OPEN_LOOP, ("    return due\n", "")),
    },
}
