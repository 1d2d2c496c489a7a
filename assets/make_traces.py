"""Records the four traces in assets/traces, and makes their replay pages.

    python -m assets.make_traces                 run the default model, write traces and pages
    python -m assets.make_traces --pages-only    make the pages again from the traces; no model

Run it from the repository's root.  Everything is decoded greedily, from fixed prompts, so events
and tokens come out the same each time; only the times differ.  It stands beside what it makes, and
not in the package: nobody who serves a model needs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paged_engine import ContinuousEngine, EngineConfig, EventLog, SamplingParams
from paged_engine import events as ev
from paged_engine.replay import replay
from paged_engine.visualizer.lanes import whole
from paged_engine.visualizer.page import replay_page
from paged_engine.visualizer.timeline import Timeline

FOLDER = Path(__file__).resolve().parent / "traces"
NEVER = 1000  # steps; a scenario that takes so many does not end


@dataclass(frozen=True)
class Arrival:
    """A request, and after which step it comes."""

    after_step: int
    name: str
    prompt: Any
    max_tokens: int
    n: int = 1


@dataclass(frozen=True)
class Scenario:
    """A run worth seeing.

    Attributes:
        about: What is to be seen, as a line.
        arrivals: In order.
        config: Of the engine.
    """

    about: str
    arrivals: Sequence[Arrival]
    config: dict[str, Any] = field(default_factory=dict)


TEACHER = (
    "You are a patient teacher. Answer in one short sentence, in plain words, and say when you are "
    "not sure."
)


def asked(question: str) -> list[dict[str, str]]:
    """A question under the system prompt that all of a scenario share."""
    return [{"role": "system", "content": TEACHER}, {"role": "user", "content": question}]


SCENARIOS: dict[str, Scenario] = {
    "steady_batch": Scenario(
        "Four prompts are served together, each until it is done",
        [
            Arrival(0, "paris", "The capital of France is", 24),
            Arrival(0, "story", "Once upon a time, in a village by a river, there lived", 48),
            Arrival(0, "water", "Water boils at", 36),
            Arrival(0, "coffee", "In the morning I like to drink a cup of", 48),
        ],
        {"num_blocks": 32, "block_size": 8, "max_num_batched_tokens": 16, "max_num_seqs": 4},
    ),
    "injection": Scenario(
        "Three prompts are decoding when two more join them, without anybody waiting",
        [
            Arrival(0, "story", "Once upon a time, in a village by a river, there lived", 48),
            Arrival(0, "moon", "The first man on the moon was", 40),
            Arrival(0, "autumn", "My favourite season is autumn, because", 44),
            Arrival(12, "gravity", asked("What is gravity?"), 32),
            Arrival(20, "hot", "The opposite of hot is", 16),
        ],
        {"num_blocks": 48, "block_size": 8, "max_num_batched_tokens": 32, "max_num_seqs": 8},
    ),
    "preemption": Scenario(
        "The pool is too small for four: some lose their blocks, and recover",
        [
            Arrival(0, "story", "Once upon a time, in a village by a river, there lived", 40),
            Arrival(0, "autumn", "My favourite season is autumn, because", 40),
            Arrival(0, "moon", "The first man on the moon was", 40),
            Arrival(0, "coffee", "In the morning I like to drink a cup of", 40),
        ],
        {"num_blocks": 16, "block_size": 8, "max_num_batched_tokens": 32, "max_num_seqs": 4},
    ),
    "prefix_sharing": Scenario(
        "One system prompt for all, and one question answered three times: blocks are shared",
        [
            Arrival(0, "italy", asked("What is the capital of Italy?"), 24),
            Arrival(3, "colours", asked("Name three colours."), 24),
            Arrival(5, "gravity", asked("What is gravity?"), 32, n=3),
            Arrival(9, "spider", asked("How many legs has a spider?"), 24),
        ],
        {"num_blocks": 48, "block_size": 8, "max_num_batched_tokens": 64, "max_num_seqs": 8},
    ),
}


def record(scenario: Scenario, model: Any, tokenizer: Any) -> EventLog:
    """The events of a scenario, with this model."""
    engine = ContinuousEngine(model, tokenizer, EngineConfig.from_options(**scenario.config))
    line = list(scenario.arrivals)
    for step in range(NEVER):
        while line and line[0].after_step <= step:
            arrival = line.pop(0)
            params = SamplingParams(max_tokens=arrival.max_tokens, n=arrival.n)
            engine.add_request(arrival.prompt, params, request_id=arrival.name)
        if not engine.has_unfinished:
            break
        engine.step()
    if line or engine.has_unfinished:
        raise RuntimeError(f"{scenario.about!r} did not end; mend its arrivals")
    return engine.log


def write_trace(name: str, log: EventLog, folder: Path) -> Path:
    """The trace as a file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    log.to_jsonl(path)
    return path


def write_page(name: str, folder: Path) -> Path:
    """The replay page of a trace that is there.

    Raises:
        PagedEngineError: The trace is not a whole log, or its events do not fit each other.
    """
    events = whole(EventLog.from_jsonl(folder / f"{name}.jsonl"))
    replay(events)  # says what does not fit
    timeline = Timeline(events, describe=partial(words, SCENARIOS[name]), most_frames=len(events))
    title = f"{name.replace('_', ' ')} - a run of paged_engine"
    about = f"SmolLM2-135M-Instruct on a CPU, float32 · {SCENARIOS[name].about}"
    path = folder / f"{name}.html"
    path.write_text(replay_page(timeline.document(), title, about), encoding="utf-8")
    return path


def words(scenario: Scenario, event: ev.Queued) -> str:
    """What a request asked, in words: the trace has only token ids."""
    name = event.request_id.partition("#")[0]  # of n samples, each has a number of its own
    (prompt,) = (arrival.prompt for arrival in scenario.arrivals if arrival.name == name)
    return prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt)


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> None:
    """Write everything, and say what was written."""
    parser = argparse.ArgumentParser(description="Records the traces and makes their pages.")
    parser.add_argument(
        "--pages-only", action="store_true", help="make the pages from the traces that are there"
    )
    options = parser.parse_args(arguments)
    written = []
    if not options.pages_only:
        from paged_engine.models.default_model import load_model_and_tokenizer

        model, tokenizer = load_model_and_tokenizer(None, dtype="float32")
        for name, scenario in SCENARIOS.items():
            written.append(write_trace(name, record(scenario, model, tokenizer), folder))
    written += [write_page(name, folder) for name in SCENARIOS]
    for path in written:
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
