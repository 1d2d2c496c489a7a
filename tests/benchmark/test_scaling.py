"""`bench --scaling`: floors by hand, prompts computed once, a line that costs a step nothing."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import paged_engine
from paged_engine.batch import Batch
from paged_engine.benchmark import command, scaling_waiting
from paged_engine.benchmark.__main__ import main
from paged_engine.benchmark.core_cost import NoModel
from paged_engine.benchmark.machine import this_machine
from paged_engine.benchmark.options import checked_peers, engine_config
from paged_engine.benchmark.scaling import in_turns
from paged_engine.benchmark.scaling_figures import draw
from paged_engine.benchmark.scaling_plan import ROOM, STEPS, WARM_UP, Plan, make_plan
from paged_engine.benchmark.scaling_results import Point, Scaling, WaitingPoint, point_of
from paged_engine.benchmark.scaling_roof import (
    ModelCost,
    Range,
    Roof,
    RoofUnderTest,
    cost_of,
)
from paged_engine.benchmark.scaling_steps import Decoder, Prefiller, Sample
from paged_engine.benchmark.scaling_waiting import BATCH, LIFE, Line
from paged_engine.block_pool import BlockPool
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError
from paged_engine.kv_cache import KVCacheShape, PagedKVCache
from paged_engine.models.tiny_models import tiny
from paged_engine.request import Request, SamplingParams
from paged_engine.scheduler import Scheduler
from tests.benchmark.test_command import parsed

CPU = torch.device("cpu")


def same(value: float) -> Range:
    return Range(value, value, value)


# What is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scaling", "batches"], "'batches'; expected some of batch,context,block-size,waiting"),
        (["--scaling", ""], "''"),
        (["--scaling", "batch,batch"], "each name once"),
        (["--scaling", "--peers"], "--peers is for serving a workload"),
        (["--scaling", "--compare", "naive"], "--compare is for"),
        (["--scaling", "--num-blocks", "9"], "--num-blocks is for"),
        (["--scaling", "--figure", "x.png"], "--figure is for"),
        (["--scaling", "--rounds", "0"], "--rounds is 0"),
        (["--scaling", "--max-model-len", "64"], "expected at least 82"),
        (["--scaling", "--figures", "no/such/folder"], "there is no folder"),
        (["--scaling", "--figures", __file__], "a file; expected a folder"),
        (["--figures", "x"], "--figures is for --scaling"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(command, "_load_model", no_model)
    with pytest.raises(InvalidConfigError) as refused:
        command.run(parsed(*arguments))
    assert says in str(refused.value)


def test_figures_without_matplotlib_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfigError, match="needs matplotlib"):
        checked_peers(parsed("--scaling", "--figures", str(tmp_path)))


def plan_of(*arguments: str, model_len: int | None = None) -> Plan:
    options = parsed("--scaling", *arguments)
    return make_plan(options, engine_config(options), model_len)


def test_the_plan_is_the_whole_range_unless_told_otherwise() -> None:
    plan = plan_of(model_len=8192)
    assert plan.batches == (1, 2, 4, 8, 16, 32, 64)
    assert plan.contexts == (64, 128, 256, 512, 1024, 2048, 4096)
    assert plan.waiting == (0, 100, 1_000, 10_000, 100_000)
    assert not plan.left_out
    assert plan.prompt_lengths == [4096] * 8 + [256] * 56


def test_a_plan_keeps_within_model_and_options() -> None:
    plan = plan_of("--concurrency", "5", "--requests", "999", model_len=128 + ROOM)
    assert (plan.batches, plan.contexts, plan.waiting) == ((1, 2, 4), (64, 128), (0, 100))
    assert (plan.batch_context, plan.context_batch, plan.block_batch) == (128, 5, 5)
    assert plan.left_out == ("contexts above 128: a request may have 146 positions",)
    assert plan_of("--max-model-len", str(127 + ROOM)).contexts == (64,)
    only = plan_of("--rounds", "1", "--concurrency", "2")
    assert only.needs_model
    options = parsed("--scaling", "waiting")
    alone = make_plan(options, engine_config(options), None)
    assert not alone.needs_model and not alone.prompt_lengths and len(alone.waiting) == 5


def test_a_plan_leaves_out_contexts_that_memory_has_no_room_for() -> None:
    plan = plan_of("--concurrency", "2", model_len=8192)
    smaller = plan.within(plan.num_kv_tokens - 1)
    assert smaller.contexts == plan.contexts[:-1] and "4096" in smaller.left_out[0]
    assert plan.within(plan.num_kv_tokens) == plan
    with pytest.raises(InvalidConfigError, match="lower --concurrency"):
        plan.within(1000)


def test_rounds_are_three_and_turn_round() -> None:
    options = parsed("--scaling")
    assert checked_peers(options) == [] and options.rounds == 3
    turns: list[str] = []

    def one(name: str) -> Callable[[], int]:
        return lambda: turns.append(name) or len(turns)  # type: ignore[func-returns-value]

    found = in_turns([(name, one(name)) for name in "abc"], 3, lambda text: None)
    assert "".join(turns) == "abccbaabc"
    assert found == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]


# Floors ----------------------------------------------------------------------------------------


def flops_of(model: Any, num_tokens: int) -> int:
    """As torch counts them, in products of matrices; without the rotation's angles."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.ones(1, num_tokens, dtype=torch.int64), logits_to_keep=1)
    angles = counter.get_flop_counts().get("LlamaForCausalLM.model.rotary_emb", {})
    return counter.get_total_flops() - sum(angles.values())


@pytest.mark.parametrize("tied", [True, False])
def test_costs_are_what_torch_counts(tied: bool) -> None:
    model: Any = tiny(tie_word_embeddings=tied, head_dim=24)
    model.set_attn_implementation("eager")
    shape = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=24)
    cost = cost_of(model, shape, torch.float32)
    embedding = model.get_input_embeddings().weight
    all_bytes = sum(p.nbytes for p in model.parameters())
    assert cost.weight_bytes == all_bytes - (0 if tied else embedding.nbytes)
    assert cost.kv_bytes == 2 * 2 * 2 * 24 * 4
    assert cost.num_flops([(0, 1)]) == flops_of(model, 1)
    # eager attention also multiplies what the mask then hides
    hidden = cost.pair_flops * (10 * 10 - 10 * 11 // 2)
    assert cost.num_flops([(0, 10)]) == flops_of(model, 10) - hidden
    # in chunks it is the same but for the head, once more
    chunks = cost.num_flops([(0, 4)]) + cost.num_flops([(4, 6)])
    assert chunks - cost.num_flops([(0, 10)]) == 2 * embedding.numel()
    assert cost.num_bytes([(0, 10), (5, 1)]) == cost.weight_bytes + 16 * cost.kv_bytes


COST = ModelCost(weight_bytes=1000, kv_bytes=10, layer_weights=50, head_weights=20, pair_flops=3)
ROOF = Roof(bandwidth=Range(50.0, 20.0, 100.0), gemm=Range(5.0, 1.0, 10.0))


def test_a_point_stands_against_its_floor() -> None:
    steps = (((0, 4),), ((4, 2),))
    samples = [Sample(seconds, steps, 6) for seconds in (90.0, 200.0, 120.0)]
    point = point_of("prefill", 6, samples, ROOF, COST)
    num_bytes = (1000 + 40) + (1000 + 60)
    num_flops = (2 * (50 * 4 + 20) + 3 * 10) + (2 * (50 * 2 + 20) + 3 * (8 + 3))
    assert (point.num_bytes, point.num_flops) == (num_bytes, num_flops) == (2100, 743)
    assert point.memory_floor == pytest.approx(21.0)
    assert point.compute_floor == pytest.approx(74.3)
    assert point.floor == pytest.approx(74.3) and point.bound == "compute"
    assert point.seconds == Range(120.0, 90.0, 200.0)
    assert point.share == pytest.approx(74.3 / 120)
    assert point.rate == Range(6 / 120, 6 / 200, 6 / 90)
    assert point.best_rate == pytest.approx(6 / 74.3)


def test_a_floor_is_taken_step_by_step() -> None:
    """One step may wait for memory and the next for arithmetic."""
    steps = (((0, 1),), ((1, 20),))
    fast = Roof(same(100.0), same(100.0))
    point = point_of("prefill", 21, [Sample(60.0, steps, 21)], fast, COST)
    memory, compute = 1010 / 100, (2 * (50 * 20 + 20) + 3 * (20 + 210)) / 100
    assert point.floor == pytest.approx(memory + compute)
    assert point.floor > max(point.memory_floor, point.compute_floor)


def test_a_roof_is_the_best_of_a_few_tries() -> None:
    times = iter([0.0, 9.0] * 9)  # three tries of three ways, to warm up
    clock_values = [*times]
    for seconds in (0.5, 0.25, 0.5):  # reading, round 1
        clock_values += [0.0, seconds]
    for seconds in (1.0, 2.0, 0.5, 4.0, 1.0, 1.0):  # multiplying, two ways in turns
        clock_values += [0.0, seconds]
    for seconds in (1.0, 1.0, 1.0, *[2.0] * 6):  # round 2
        clock_values += [0.0, seconds]
    clock = iter(clock_values)
    roof = RoofUnderTest(
        torch.float32, CPU, read_bytes=8000, gemm_size=64, clock=lambda: next(clock)
    )
    roof.measure()
    roof.measure()
    flops = 2 * 64**3
    assert roof.roof().bandwidth == Range(20_000.0, 8000.0, 32_000.0)
    assert roof.roof().gemm == Range(flops * 1.25, flops / 2, flops * 2)
    assert next(clock, None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_roof_can_be_measured(dtype: torch.dtype) -> None:
    under_test = RoofUnderTest(dtype, CPU, read_bytes=80_000, gemm_size=64)
    under_test.measure()
    roof = under_test.roof()
    assert roof.bandwidth.median > 0 and roof.gemm.median > 0


# Steps of the engine ---------------------------------------------------------------------------


class Counting(NoModel):
    """Computes nothing, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def forward(self, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        pairs = zip(batch.context_lens, batch.query_lens, strict=True)
        self.batches.append([(end - number, number) for end, number in pairs])
        return super().forward(batch, cache)

    def take(self) -> list[list[tuple[int, int]]]:
        batches, self.batches = self.batches, []
        return batches


@pytest.mark.parametrize("block_size", [4, 16, 64])
def test_prompts_are_computed_once_and_then_decode_at_once(block_size: int) -> None:
    model = Counting()
    config = EngineConfig(block_size=block_size, max_num_batched_tokens=32, probe=False)
    lengths = [256, 256, 64, 64, 64]
    prompts = [tuple(range(i, i + n + 1)) for i, n in enumerate(lengths)]
    prompts = [tuple(token % 128 for token in prompt) for prompt in prompts]
    points = [(1, 64), (5, 64), (2, 128), (2, 256)]
    decoder = Decoder(model, config, prompts, num_uses=3 * (1 + 5 + 2 + 2))
    computed = sum(number for batch in model.take() for _, number in batch)
    assert computed == sum(lengths) + len(lengths)
    for _ in range(3):
        for batch, context in points:
            sample = decoder.decode(batch, context)
            batches = model.take()
            assert batches[0] == [(context, 1)] * batch  # all the rest was found
            assert len(batches) == WARM_UP + STEPS + 2
            expected = context + 1 + WARM_UP + STEPS // 2
            assert sample.steps == (((expected, 1),) * batch,)
            assert sample.steps[0] == tuple(batches[1 + WARM_UP + STEPS // 2])
            assert sample.num_tokens == batch and sample.seconds > 0


def test_a_decode_sample_is_the_median_step() -> None:
    ticks = count()
    seconds = [1.0, 9.0, 2.0, *[5.0] * (STEPS - 3)]
    pairs = iter([value for s in seconds for value in (0.0, s)])

    def clock() -> float:
        next(ticks)
        return next(pairs)

    decoder = Decoder(Counting(), EngineConfig(probe=False), [(1, 2, 3)], 1, clock)
    assert decoder.decode(1, 2).seconds == 5.0
    assert next(ticks) == 2 * STEPS  # the steps to warm up are not among them


def test_a_prompt_alone_is_computed_anew_in_chunks() -> None:
    model = Counting()
    config = EngineConfig(max_num_batched_tokens=16, probe=False)
    prompt = tuple(range(60))
    alone = Prefiller(model, config, prompt, [8, 60])
    assert sorted(model.take()) == [[(0, 8)], [(0, 16)]]
    for _ in range(2):
        sample = alone.prefill(40)
        assert sample.steps == (((0, 16),), ((16, 16),), ((32, 8),))
        assert [list(step) for step in sample.steps] == model.take()
        assert sample.num_tokens == 40


# The line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_waiting", [0, 1, 100])
def test_the_line_keeps_its_length(num_waiting: int) -> None:
    line = Line(num_waiting)
    scheduler = line.scheduler
    for _ in range(3 * LIFE):
        before = scheduler.num_finished.copy()
        output = scheduler.schedule()
        assert len(output.scheduled) == BATCH and len(output.admitted) == 1
        assert len(scheduler.waiting) == num_waiting
        scheduler.rollback(output)
        line.step()
        assert sum(scheduler.num_finished.values()) - sum(before.values()) == 1
    scheduler.check_invariants()


PACKAGE = str(Path(paged_engine.__file__).parent)
HARNESS = str(Path(scaling_waiting.__file__))


class Comparisons:
    """How often two places in line were compared: it is done in C, where no step is counted."""

    number = 0


class Place(tuple[int, int]):
    def __eq__(self, other: object) -> bool:
        Comparisons.number += 1
        return tuple.__eq__(self, other)  # type: ignore[arg-type]

    def __lt__(self, other: tuple[int, int]) -> bool:  # type: ignore[override]
        Comparisons.number += 1
        return tuple.__lt__(self, other)

    __hash__ = tuple.__hash__


class Placed(Request):
    """A request that counts when it is compared, by place or in a search for it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, Place(value) if name == "queue_key" else value)

    def __eq__(self, other: object) -> bool:
        Comparisons.number += 1
        return self is other

    __hash__ = object.__hash__


def work_of(function: Callable[[], object]) -> tuple[int, int]:
    """Instructions of the package's Python that are executed, and comparisons besides.

    A loop over those who wait shows in the first even if it calls nothing, and a sort or a search
    in C in the second.
    """
    number = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal number
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE) or file == HARNESS:
            return None
        frame.f_trace_opcodes = True
        number += event == "opcode"
        return trace

    Comparisons.number = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return number, Comparisons.number


class Steady:
    """One ends and one is admitted in every step."""

    def __init__(self, number: int) -> None:
        self.step = Line(number).step


class Short:
    """The pool is too small: the last one admitted is preempted again and again."""

    policy: Any = "fcfs"
    num_preempted = 0

    def __init__(self, number: int) -> None:
        config = EngineConfig(max_num_seqs=8, num_blocks=10, block_size=4, policy=self.policy)
        self.scheduler = Scheduler(config, BlockPool(10, 4))
        self.number = 0
        for _ in range(number):
            self.send()

    def send(self, priority: int = 5) -> None:
        i = self.number
        self.number += 1
        params = SamplingParams(max_tokens=12)
        request = Placed(str(i), [i % 99, i // 99, 3, 4], params, 12, priority=priority)
        self.scheduler.add(request)

    def step(self) -> None:
        output = self.scheduler.schedule()
        self.num_preempted += len(output.preempted)
        self.scheduler.update(output, {r.request_id: 7 for r in output.scheduled})


class Urgent(Short):
    """And somebody comes now and then who goes before all who wait."""

    policy = "priority"

    def step(self) -> None:
        if self.number % 2:
            self.send(priority=0)
        super().step()


@pytest.mark.parametrize("kind", [Steady, Short, Urgent])
def test_a_step_does_no_more_work_the_longer_the_line(
    kind: type[Steady] | type[Short], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_waiting, "Request", Placed)
    found = {}
    for number in (100, 1_000, 10_000):
        line = kind(number)
        found[number] = [work_of(line.step) for _ in range(40)]
        if isinstance(line, Short):
            assert line.num_preempted > 3, "the pool was never short"
    instructions = {n: [i for i, _ in steps] for n, steps in found.items()}
    assert instructions[100] == instructions[1_000] == instructions[10_000]
    assert min(instructions[100]) > 100, "nothing was counted"
    few, many = (max(c for _, c in found[n]) for n in (100, 10_000))
    # A heap looks at no more places than it has levels, for each who joins or leaves it.
    assert 0 < many <= few * math.log(10_000) / math.log(100) + 10


# Whole runs, and what they leave behind --------------------------------------------------------

SMALL = ["--scaling", "--model", "tiny", "--concurrency", "2", "--max-model-len", "150"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paged_engine.benchmark.scaling_roof.READ_BYTES", 80_000)
    folder, path = tmp_path / "figures", tmp_path / "scaling.json"
    more = ["--dtype", dtype, "--requests", "100", "--rounds", "2"]
    assert main([*SMALL, *more, "--json", str(path), "--figures", str(folder)]) == 0
    said = capsys.readouterr()
    found = json.loads(path.read_text(encoding="utf-8"))
    measured = [(point["series"], point["value"]) for point in found["points"]]
    assert measured == [
        *[("batch", n) for n in (1, 2)],
        *[("context", n) for n in (64, 128)],
        *[("prefill", n) for n in (64, 128)],
        *[("block-size", n) for n in (4, 8, 16, 32, 64, 128)],
    ]
    assert [point["num_waiting"] for point in found["waiting"]] == [0, 100]
    assert found["dtype"] == dtype and found["num_rounds"] == 2
    for point in found["points"]:
        assert point["floor"] >= max(point["memory_floor"], point["compute_floor"]) > 0
        assert point["share_of_best"] == point["floor"] / point["seconds"]["median"]
        rate = point["num_tokens"] / point["seconds"]["median"]
        assert point["tokens_per_second"]["median"] == rate
        assert f"{rate:.1f}" in said.out
    assert "memory read" in said.out and "µs a step" in said.out
    assert "round 2 of 2, block-size 128" in said.err
    names = ("batch", "context", "block_size", "waiting", "roofline")
    files = {f"scaling_{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {file.name for file in folder.iterdir()} == files


def test_the_scheduler_alone_needs_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_load_model", None)
    arguments = ["--scaling", "waiting", "--requests", "100", "--rounds", "1", "--no-progress"]
    assert main([*arguments, "--figures", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "one round" in said.out and "waiting" in said.out and not said.err
    assert "memory read" not in said.out
    assert {file.name for file in tmp_path.iterdir()} == {
        "scaling_waiting.png",
        "scaling_waiting.svg",
    }


def planned_points() -> tuple[Point, ...]:
    def point(series: str, value: int, num_tokens: int, milliseconds: float) -> Point:
        seconds = milliseconds / 1000
        near = Range(seconds, seconds * 0.9, seconds * 1.2)
        return Point(
            series, value, num_tokens, near, 10**9, 10**10, seconds / 2, seconds / 4, 0.5e-3
        )

    return (
        *(point("batch", n, n, 10 + n) for n in (1, 2, 4)),
        *(point("context", n, 2, n / 10) for n in (64, 128)),
        *(point("prefill", n, n, n / 2) for n in (64, 128)),
        *(point("block-size", n, 2, m) for n, m in ((4, 10.0), (8, 5.0), (16, 8.0))),
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The SVGs of made-up numbers, by name."""
    found = Scaling(
        created="2026-01-01T00:00:00+00:00",
        machine=this_machine(CPU),
        num_rounds=3,
        plan=Plan((1, 2, 4), (64, 128), (4, 8, 16), (0, 1000), 64, 2, 2),
        block_size=16,
        budget=512,
        model="a model",
        dtype="bfloat16",
        device="cpu",
        roof=Roof(same(1e10), same(1e12)),
        cost=COST,
        points=planned_points(),
        waiting=(WaitingPoint(0, same(50e-6)), WaitingPoint(1000, same(52e-6))),
    )
    folder = tmp_path_factory.mktemp("figures")
    files = draw(found, folder)
    assert {file.suffix for file in files} == {".png", ".svg"} and len(files) == 10
    return {f.stem: f.read_text(encoding="utf-8") for f in files if f.suffix == ".svg"}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("batch", "4 requests together get 3.1 x the tokens a second of one"),
        ("context", "With 128 tokens of context a decode step takes 2.0 x as long as with 64"),
        (
            "block_size",
            "Blocks of 8 tokens are the fastest; the slowest, of 4, give 50% less",
        ),
        (
            "waiting",
            "With 1,000 requests waiting a step of the scheduler takes 52 µs; with 0, 50 µs",
        ),
        (
            "roofline",
            "At best a decode step reaches 10% of what this machine can do, and a prompt 2%",
        ),
    ],
)
def test_titles_say_what_was_measured(drawn: dict[str, str], name: str, title: str) -> None:
    assert f"<title>{title} (" in drawn[f"scaling_{name}"]
    assert re.search(rf">{re.escape(title)}</text>", drawn[f"scaling_{name}"])


def test_figures_follow_dark_paper(drawn: dict[str, str]) -> None:
    """Every colour that is drawn with has its counterpart there."""
    for name, text in drawn.items():
        style, body = text.split("</style>", 1)
        followed = set(re.findall(r'\[style\*="((?:fill|stroke): #\w{6})"\]', style))
        used = set(re.findall(r"(?:fill|stroke): #\w{6}", body))
        assert used and used <= followed, f"{name} also draws with {used - followed}"
        assert "prefers-color-scheme:dark" in style
        for unit in ("second", "µs", "GFLOP/s"):
            if unit in body:
                break
        else:
            raise AssertionError(f"{name} has no unit")


def test_the_same_numbers_make_the_same_file(drawn: dict[str, str]) -> None:
    assert "<dc:date>" not in "".join(drawn.values())
