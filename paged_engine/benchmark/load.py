"""When requests come: all at once, by the clock, or one from each client after the other.

In an open loop requests come when they come, however busy the engine is, as from many strangers;
in a closed loop each of a few clients waits for its answer before it asks again.  A closed loop
slows down with the engine and so hides how long a queue would grow (Schroeder, Wierman and
Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006).

The engine computes in steps, and this driver hands over what is due between two of them.  A
request that came during a step has waited since then, although the engine has not seen it yet.  So
latencies count from when it was due and not from when it was handed over; to leave that wait out is
"coordinated omission" (Gil Tene, "How NOT to Measure Latency", 2013; wrk2's README).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from paged_engine.benchmark.peers import Progress, in_silence
from paged_engine.benchmark.workloads import Job
from paged_engine.engine import ContinuousEngine
from paged_engine.events import Event, Queued


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Job i is due `arrivals[i]` seconds after the start; ascending."""

    arrivals: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many clients; each sends the next job as soon as its last one has ended."""

    num_clients: int


Load = OpenLoop | ClosedLoop


def at_once(num_jobs: int) -> OpenLoop:
    """All are there at the start."""
    return OpenLoop((0.0,) * num_jobs)


def poisson(num_jobs: int, rate: float, seed: int) -> OpenLoop:
    """Arrivals that know nothing of each other, `rate` a second on average.

    The times between them are exponential with mean 1 / rate; so is that before the first.
    """
    rng = random.Random(f"arrivals {seed}")
    return OpenLoop(tuple(accumulate(rng.expovariate(rate) for _ in range(num_jobs))))


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a job.  Times are in seconds of the engine's clock.

    Attributes:
        due: When it was meant to be sent.
        submitted: When it was handed to the engine, which is never before.
    """

    request_id: str
    due: float
    submitted: float
    token_ids: tuple[int, ...]


def drive(
    engine: ContinuousEngine,
    jobs: Sequence[Job],
    load: Load,
    *,
    sleep: Callable[[float], object] = time.sleep,
    progress: Progress = in_silence,
) -> list[Answer]:
    """Serve all jobs under a load.

    Args:
        engine: Its clock is what counts; nothing else is being served by it.
        jobs: What to send, in this order.
        load: When.
        sleep: Waits so many seconds of that clock, where nothing is to be computed.
        progress: Told how many jobs have ended, whenever one has.

    Returns:
        An answer for each job, in their order.
    """
    clock = engine.core.clock
    began = clock()
    if isinstance(load, OpenLoop):
        due = deque(began + arrival for arrival in load.arrivals)
    else:
        due = deque([began] * min(load.num_clients, len(jobs)))
    sent: dict[str, tuple[float, float]] = {}
    token_ids: dict[str, tuple[int, ...]] = {}
    while len(token_ids) < len(jobs):
        while due and due[0] <= (now := clock()):
            job = jobs[len(sent)]
            sent[engine.add_request(job.prompt_token_ids, job.params)] = (due.popleft(), now)
        if not engine.has_unfinished:
            sleep(max(0.0, due[0] - clock()))
            continue
        for output in engine.step():
            if not output.finished:
                continue
            token_ids[output.request_id] = output.token_ids
            if isinstance(load, ClosedLoop) and len(sent) + len(due) < len(jobs):
                due.append(clock())
            progress(len(token_ids))
    return [Answer(name, *times, token_ids[name]) for name, times in sent.items()]


def as_clients_saw(events: Iterable[Event], answers: Sequence[Answer]) -> Iterator[Event]:
    """The log with every request queued when it was due.

    The order of the events stays, and with it what they say of engine and pool.
    """
    due = {answer.request_id: answer.due for answer in answers}
    for event in events:
        yield replace(event, time=due[event.request_id]) if isinstance(event, Queued) else event
