"""The bug hunt of notebook 10: a load generator whose timer starts too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from paged_engine.benchmark import load as the_load
from paged_engine.benchmark.load import Answer, Load, OpenLoop
from paged_engine.benchmark.workloads import Job
from paged_engine.engine import ContinuousEngine
from paged_engine.lessons.bug_hunts import Hunt, hunt, replaced

_sound_drive = the_load.drive


def _drive(
    engine: ContinuousEngine,
    jobs: Sequence[Job],
    load: Load,
    *,
    sleep: Callable[[float], object],
) -> list[Answer]:
    """As the package's, but through one connection for each seat; who waits for one is not timed.

    It is given a plan of arrivals, and quietly is a closed loop whenever the engine is full.
    """
    if not isinstance(load, OpenLoop):
        return _sound_drive(engine, jobs, load, sleep=sleep)
    clock, num_connections = engine.core.clock, engine.config.max_num_seqs
    began, arrivals = clock(), deque(load.arrivals)
    sent: dict[str, float] = {}
    token_ids: dict[str, tuple[int, ...]] = {}
    while len(token_ids) < len(jobs):
        while (
            arrivals
            and began + arrivals[0] <= clock()
            and len(sent) - len(token_ids) < num_connections
        ):
            arrivals.popleft()
            job = jobs[len(sent)]
            sent[engine.add_request(job.prompt_token_ids, job.params)] = clock()
        if not engine.has_unfinished:
            sleep(max(0.0, began + arrivals[0] - clock()))
            continue
        for output in engine.step():
            if output.finished:
                token_ids[output.request_id] = output.token_ids
    return [Answer(name, at, at, token_ids[name]) for name, at in sent.items()]


@contextmanager
def _inject() -> Iterator[None]:
    with replaced(the_load, "drive", _drive):
        yield


hunt(
    Hunt(
        "10",
        inject=_inject,
        suspects={
            "A": "The arrivals were drawn for a lower rate than was asked for.",
            "B": "The metrics count TTFT from when a request is admitted, not from when it is "
            "queued.",
            "C": "The load generator has one connection for each seat. Who is due while all are "
            "taken waits for one, and is timed from then on.",
            "D": "The engine gives newcomers a seat at once, by taking it from somebody else.",
        },
        guilty="C",
        reasons={
            "A": "The plan is the very one that the sound run kept to, and its last arrival "
            "agrees with the rate.",
            "B": "In the log nobody is queued much before it is admitted, so both ways to count "
            "give nearly the same.",
            "C": "Never more than eight are in the engine, and each is queued in the moment when "
            "another has ended: an open plan, kept by a closed loop. The wait before it is "
            "nobody's.",
            "D": "Who loses a seat is preempted, and the log has no such event.",
        },
        source="vLLM's issue 54101: bench serve with a limit of concurrency; mended in 54136",
    )
)
