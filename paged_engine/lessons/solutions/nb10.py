"""Solutions of notebook 10: latencies from events, percentiles, an open loop of strangers."""

# As they stand in the notebook, where nothing is annotated.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, var-annotated"

import math
import random
from collections import deque
from itertools import accumulate, pairwise


def latencies(events, due):
    """For each request its TTFT, its TPOT and the list of its ITLs."""
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


def percentile(values, percent):
    """The value at that percent of the way through the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def poisson(num_requests, rate, seed):
    """When each request comes, if they know nothing of each other."""
    draw = random.Random(seed)
    return list(accumulate(draw.expovariate(rate) for _ in range(num_requests)))


def open_loop(engine, jobs, arrivals, clock, wait):
    """Serve all jobs, each from when it is due; returns {its name: when that was}."""
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
