"""paged_engine under a load, as one of those that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paged_engine.benchmark.load import Answer, Load, drive
from paged_engine.benchmark.peers import Progress, Tokens, in_silence
from paged_engine.benchmark.report import Report, Targets, make_report
from paged_engine.benchmark.workloads import Job, a_little_of
from paged_engine.config import EngineConfig
from paged_engine.engine import ContinuousEngine
from paged_engine.events import Event

MOST_EVENTS = 100_000_000  # a log that had dropped its oldest events could not be measured


@dataclass(frozen=True, slots=True)
class Run:
    """What one run left behind."""

    events: list[Event]
    answers: list[Answer]

    def report(self, targets: Targets) -> Report:
        """The numbers; working them out takes time, so not while others are timed."""
        return make_report(self.events, self.answers, targets)


class EngineUnderTest:
    """A peer like the others, which keeps what it saw.

    Each run has an engine of its own: its prefix cache is empty and its log begins with it.  The
    model is the same, and so is the size of the pool.

    Args:
        model: Of transformers, or a `ModelRunner`.
        tokenizer: Or None.
        config: The engine's limits.
        load: Makes the load for so many jobs.

    Attributes:
        config: With what the engine decided filled in.
        runs: One for each time that `run` was called.

    Raises:
        PagedEngineError: The model cannot be served, or not under these limits.
    """

    name = "paged_engine"

    def __init__(
        self, model: Any, tokenizer: Any, config: EngineConfig, load: Callable[[int], Load]
    ) -> None:
        config = replace(config, record_events=True, max_events=MOST_EVENTS)
        engine = ContinuousEngine(model, tokenizer, config)
        self.config = engine.config
        self.runs: list[Run] = []
        self._runner = engine.core.runner  # the model was probed, once is enough
        self._tokenizer = tokenizer
        self._load = load

    def warm_up(self, jobs: Sequence[Job]) -> None:
        """Serve a little, without waiting for anybody to send it."""
        few = a_little_of(jobs)
        self._engine().generate([j.prompt_token_ids for j in few], [j.params for j in few])

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        engine = self._engine()
        answers = drive(engine, jobs, self._load(len(jobs)), progress=progress)
        self.runs.append(Run(list(engine.log), answers))
        return [answer.token_ids for answer in answers]

    def _engine(self) -> ContinuousEngine:
        return ContinuousEngine(self._runner, self._tokenizer, self.config)
