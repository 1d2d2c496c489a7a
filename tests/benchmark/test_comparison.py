"""Who serves the same jobs, how fast and with which tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from paged_engine import EngineConfig
from paged_engine.benchmark.comparison import Parting, Standing, compare, parting, table
from paged_engine.benchmark.load import OpenLoop, at_once
from paged_engine.benchmark.measurement import EngineUnderTest
from paged_engine.benchmark.peers import (
    PEERS,
    GenerateBatch,
    Naive,
    Peer,
    Progress,
    StaticBatches,
    Tokens,
    in_silence,
)
from paged_engine.benchmark.report import Targets
from paged_engine.benchmark.workloads import Job, make_jobs
from paged_engine.models import tiny
from tests.helpers.fakes import VirtualClock

MODEL = tiny()
JOBS = make_jobs("uniform", 256, num_requests=7, prompt_lengths=(3, 40), output_lengths=(2, 20))


def greedy(job: Job, model: torch.nn.Module = MODEL) -> tuple[int, ...]:
    """Token by token, without `generate`."""
    tokens = list(job.prompt_token_ids)
    with torch.inference_mode():
        for _ in range(job.num_output_tokens):
            logits = model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(job.prompt_token_ids) :])


EXPECTED = [greedy(job) for job in JOBS]


class Scripted:
    """A peer that says what it is told to, and takes the time it is told to."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        outputs: Tokens | list[Tokens],  # of every turn, or of each
        *seconds: float | Exception,
    ) -> None:
        self.name = name
        self.clock = clock
        self.outputs = outputs if isinstance(outputs[0], list) else [outputs] * len(seconds)
        self.turns = list(seconds)
        self.calls: list[int] = []

    def run(self, jobs: Sequence[Job], progress: Progress = in_silence) -> Tokens:
        self.calls.append(sum(job.num_output_tokens for job in jobs))
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        self.clock.now += turn
        progress(1)
        return self.outputs[len(self.calls) - 1][: len(jobs)]


def ours(load: object = at_once) -> EngineUnderTest:
    return EngineUnderTest(MODEL, None, EngineConfig(max_num_seqs=4, num_blocks=32), load)  # type: ignore[arg-type]


# The peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "peer",
    [
        Naive(MODEL),
        StaticBatches(MODEL, 1),
        StaticBatches(MODEL, 3),
        StaticBatches(MODEL, 100),
        GenerateBatch(MODEL, max_num_seqs=4, max_num_batched_tokens=64),
        ours(),
    ],
    ids=["naive", "static 1", "static 3", "static 100", "generate_batch", "paged_engine"],
)
def test_every_peer_gives_the_model_s_tokens(peer: Peer) -> None:
    """In fp32 all alike, whatever they are padded or batched with; and each counts its jobs."""
    told: list[int] = []
    assert peer.run(JOBS, told.append) == EXPECTED
    assert told[-1] == len(JOBS)


@pytest.mark.parametrize(
    "peer", [Naive(MODEL), StaticBatches(MODEL, 3), GenerateBatch(MODEL, 4, 64)]
)
def test_the_end_of_sequence_token_ends_nothing(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is generated, generation goes on, and the model's settings are as they were."""
    monkeypatch.setattr(MODEL.generation_config, "eos_token_id", EXPECTED[0][0])
    assert peer.run(JOBS[:2]) == EXPECTED[:2]
    assert MODEL.generation_config.eos_token_id == EXPECTED[0][0]


def test_generate_batch_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread keeps the error to itself; we do not wait for ever."""
    peer = GenerateBatch(MODEL, 4, 64)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a layer is missing")

    monkeypatch.setattr(MODEL, "forward", broken)
    with pytest.raises(RuntimeError, match="a layer is missing"):
        peer.run(JOBS[:2])


def test_the_peers_that_can_be_named() -> None:
    config = EngineConfig(max_num_seqs=5)
    names = {name: make(MODEL, config, 6).name for name, make in PEERS.items()}
    assert names == {
        "naive": "naive",
        "static": "static batches of 6",
        "generate_batch": "generate_batch",
    }


# The engine under test -------------------------------------------------------------------------


def test_every_run_has_an_engine_of_its_own() -> None:
    """So the second finds no prompts of the first in its cache, and warming up leaves no trace."""
    peer = ours()
    peer.warm_up(JOBS)
    assert peer.runs == []
    peer.run(JOBS)
    peer.run(JOBS)
    one, two = (run.report(Targets()) for run in peer.runs)
    assert one.num_cached_tokens == two.num_cached_tokens == 0
    assert one.num_requests == two.num_requests == len(JOBS)
    assert one.num_steps == two.num_steps > 0


def test_warming_up_waits_for_nobody() -> None:
    """A load that never sends anything."""
    ours(lambda n: OpenLoop((float("inf"),) * n)).warm_up(JOBS)


# Taking turns ----------------------------------------------------------------------------------


def test_turns_alternate_and_the_warm_up_does_not_count() -> None:
    clock, said = VirtualClock(), []
    naive = Scripted("naive", clock, EXPECTED, 500.0, 4.0, 8.0, 5.0)
    engine = Scripted("paged_engine", clock, EXPECTED, 1.0, 2.0, 4.0)
    standings = compare([naive], engine, JOBS, 3, MODEL, say=said.append, clock=clock)
    assert said == [
        "warming up naive",
        *(f"round {n} of 3, {name}" for n in (1, 2, 3) for name in ("naive", "paged_engine")),
    ]
    assert [s.seconds for s in standings] == [(4.0, 8.0, 5.0), (1.0, 2.0, 4.0)]
    total = sum(job.num_output_tokens for job in JOBS)
    assert naive.calls[1:] == engine.calls == [total] * 3
    assert naive.calls[0] < 17  # two jobs of eight tokens at most
    assert [s.median_rate for s in standings] == [total / 5, total / 2]
    assert [s.num_identical for s in standings] == [7, 7]


def test_outputs_that_part_are_counted_with_the_margin() -> None:
    """The fewest of all rounds count; the margin is that of the model's two best tokens."""
    clock = VirtualClock()
    wrong = [(*EXPECTED[0][:1], EXPECTED[0][1] ^ 1, *EXPECTED[0][2:]), *EXPECTED[1:]]
    naive = Scripted("naive", clock, EXPECTED, 1.0, 1.0, 1.0, 1.0)
    engine = Scripted("paged_engine", clock, [EXPECTED, wrong, EXPECTED], 1.0, 1.0, 1.0)
    first, second = compare([naive], engine, JOBS, 3, MODEL, say=lambda text: None, clock=clock)
    assert (first.num_identical, first.partings) == (7, ())
    assert second.num_identical == 6
    (found,) = second.partings
    assert (found.job, found.position) == (0, 1)
    with torch.inference_mode():
        known = torch.tensor([[*JOBS[0].prompt_token_ids, EXPECTED[0][0]]])
        best = MODEL(known).logits[0, -1].topk(2).values
    assert found.margin == pytest.approx(float(best[0] - best[1]), rel=1e-3)
    assert parting(MODEL, 0, JOBS[0], wrong[0], EXPECTED[0]) == found


def test_a_reference_that_changes_is_held_against_its_own_first_round() -> None:
    clock = VirtualClock()
    other = [*EXPECTED[:-1], tuple(token ^ 1 for token in EXPECTED[-1])]
    naive = Scripted("naive", clock, [EXPECTED, EXPECTED, other], 1.0, 1.0, 1.0)
    engine = Scripted("paged_engine", clock, EXPECTED, 1.0, 1.0)
    standings = compare([naive], engine, JOBS, 2, MODEL, say=lambda text: None, clock=clock)
    assert [s.num_identical for s in standings] == [6, 7]


def test_one_that_fails_is_out_and_the_others_go_on() -> None:
    clock, said = VirtualClock(), []
    at_first = Scripted("naive", clock, EXPECTED, ValueError("no\nweights"))
    later = Scripted("static", clock, EXPECTED, 1.0, 2.0, RuntimeError("full"))
    engine = Scripted("paged_engine", clock, EXPECTED, 1.0, 1.0, 1.0)
    standings = compare([at_first, later], engine, JOBS, 3, MODEL, say=said.append, clock=clock)
    assert [s.failure for s in standings] == ["ValueError: no weights", "RuntimeError: full", None]
    assert [len(s.seconds) for s in standings] == [0, 1, 3]
    assert [s.num_identical for s in standings] == [None, None, None]  # nobody to compare with
    assert "naive failed: ValueError: no weights" in said
    assert len(at_first.calls) == 1 and len(later.calls) == 3


def test_our_own_failure_is_raised() -> None:
    engine = Scripted("paged_engine", VirtualClock(), EXPECTED, ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        compare([], engine, JOBS, 1, MODEL, say=lambda text: None)


def test_a_long_turn_is_told_of() -> None:
    """Ten seconds after it began, and not before."""
    clock, said = VirtualClock(), []
    compare(
        [], Scripted("x", clock, EXPECTED, 9.5, 10.0), JOBS, 2, MODEL, say=said.append, clock=clock
    )
    assert said == ["round 1 of 2, x", "round 2 of 2, x", "round 2 of 2, x: 1 of 7 requests"]


def test_the_real_ones_together() -> None:
    standings = compare(
        [Naive(MODEL), StaticBatches(MODEL, 3)], ours(), JOBS, 2, MODEL, say=lambda text: None
    )
    assert [s.name for s in standings] == ["naive", "static batches of 3", "paged_engine"]
    assert [s.num_identical for s in standings] == [7, 7, 7]
    assert [len(s.seconds) for s in standings] == [2, 2, 2]
    assert all(s.failure is None and s.partings == () for s in standings)


# The table -------------------------------------------------------------------------------------


def test_the_table() -> None:
    standings = [
        Standing("naive", (10.0, 5.0, 4.0), 100, 7, 7),
        Standing("static", (2.0,), 100, 7, 6, (Parting(0, 3, 0.25), Parting(1, 1, 1e-5)), "full"),
        Standing("generate_batch", (), 100, 7, failure="RuntimeError: no"),
        Standing("paged_engine", (1.0, 2.0, 4.0), 100, 7, 7),
    ]
    assert table(standings).splitlines() == [
        "                 median tok/s   lowest to highest   paged_engine against it   identical",
        "naive                    20.0        10.0 to 25.0                    2.50 x      7 of 7",
        "static                   50.0        50.0 to 50.0                    1.00 x      6 of 7",
        "generate_batch         failed",
        "paged_engine             50.0       25.0 to 100.0                    1.00 x      7 of 7",
        "static failed after 1 of the rounds: full",
        "where static parts from naive, the model's two best candidates are at most 0.25 apart",
        "generate_batch failed: RuntimeError: no",
    ]
