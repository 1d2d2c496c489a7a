"""The plots: what is painted is what the log says, readable in both themes, nothing cut."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the plots need matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from paged_engine import ContinuousEngine, EngineConfig, EventLog, PagedEngineError, SamplingParams
from paged_engine.errors import InvalidConfigError
from paged_engine.metrics import StepMetrics, run_metrics
from paged_engine.replay import BlockState, EngineState, RequestState
from paged_engine.visualizer.lanes import read_run, state_at
from paged_engine.visualizer.palette import colours, paper
from paged_engine.visualizer.plots import Plot, plot_blocks, plot_lanes, plot_metrics
from paged_engine.visualizer.plots.metrics import token_rates
from tests.helpers.fakes import OracleModel

PLOTS = [plot_blocks, plot_lanes, plot_metrics]
THEMES = ["light", "dark"]


@cache
def small() -> EventLog:
    """Five requests: chunks, waiting, an injection that shares blocks, a preemption, an abort."""
    ticks = itertools.count()
    config = EngineConfig(num_blocks=40, block_size=4, max_num_batched_tokens=24, max_num_seqs=6)
    served = ContinuousEngine(OracleModel(), config=config, clock=lambda: 7 + next(ticks) / 50)
    for first, length, tokens in [(30, 11, 24), (31, 32, 20), (32, 22, 12), (33, 42, 40)]:
        prompt = [first, *range(3, 2 + length)]
        served.add_request(prompt, SamplingParams(max_tokens=tokens))
    for number in range(1, 100):
        if not served.has_unfinished:
            break
        served.step()
        if number == 12:
            prompt = [30, *range(3, 33)]
            served.add_request(prompt, SamplingParams(max_tokens=9), request_id="late")
        if number == 25:
            served.abort("request-3")
    return served.log


@cache
def large() -> EventLog:
    """Sixty requests, one every other step, in a pool of 4096 blocks."""
    draw, ticks = random.Random(1), itertools.count()
    config = EngineConfig(num_blocks=4096, block_size=4, max_num_batched_tokens=512)
    served = ContinuousEngine(OracleModel(), config=config, clock=lambda: next(ticks) / 200)
    left = 60
    for number in range(1000):
        if left and number % 2 == 0:
            prompt = [draw.randrange(3, 50) for _ in range(draw.randrange(10, 300))]
            served.add_request(prompt, SamplingParams(max_tokens=draw.randrange(20, 60)))
            left -= 1
        if not served.has_unfinished:
            break
        served.step()
    return served.log


def texts(figure: Any) -> list[Text]:
    """All that is drawn; an axis also has labels of ticks beyond its ends, which are not."""
    every = figure.findobj(Text)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            drawn = {id(tick.label1) for tick in ticks if low <= tick.get_loc() <= high}
            all_of_it = {id(t) for tick in axis.majorTicks for t in tick.findobj(Text)}
            every = [t for t in every if id(t) in drawn or id(t) not in all_of_it]
    return [t for t in every if t.get_visible() and t.get_text().strip()]


def pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3] / 255


def words_of(figure: Any) -> str:
    return "\n".join(t.get_text() for t in texts(figure))


# Every plot --------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("log", [small, large], ids=["small", "large"])
@pytest.mark.parametrize("plot", PLOTS)
def test_no_text_is_cut_or_overlaps_another(plot: Any, log: Any, theme: Any) -> None:
    figure = plot(log(), theme=theme)
    figure.canvas.draw()
    page = figure.bbox
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]
    assert len(boxes) > 10
    for words, box in boxes:
        assert box.x0 >= page.x0 and box.x1 <= page.x1, f"{words!r} is cut"
        assert box.y0 >= page.y0 and box.y1 <= page.y1, f"{words!r} is cut"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 3, f"{one!r} overlaps {other!r}"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("plot", PLOTS)
def test_every_text_can_be_read_on_the_paper_of_its_theme(plot: Any, theme: Any) -> None:
    figure = plot(small(), theme=theme)
    back = to_rgb(paper(theme == "dark")["bg"])
    assert to_rgb(figure.get_facecolor()) == back
    assert (luminance(back) > 0.5) == (theme == "light")
    inks = {to_rgb(ink) for _, ink in colours(theme == "dark")}
    for text in texts(figure):
        on_a_block = text.axes is not None and text in text.axes.texts
        if not (on_a_block and to_rgb(text.get_color()) in inks):
            assert contrast(to_rgb(text.get_color()), back) >= 4.5, text.get_text()
    assert tuple(pixels(figure)[0, 0]) == pytest.approx(back, abs=0.01)


def luminance(colour: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """As WCAG defines it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_what_is_written_on_a_block_can_be_read() -> None:
    for dark in (False, True):
        for colour, ink in colours(dark):
            assert contrast(to_rgb(colour), to_rgb(ink)) >= 3.5, (colour, ink)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_is_told_as_well_as_shown(plot: Any) -> None:
    figure = plot(small())
    assert isinstance(figure, Plot) and len(figure.pe_alt) > 100
    data, metadata = figure._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == repr(figure) and repr(figure).split() == figure.pe_alt.split()
    assert metadata["image/png"]["alt"] == figure.pe_alt
    titled = plot(small(), title="Mine, all mine")
    assert "Mine, all mine" in words_of(titled) and titled.pe_alt == figure.pe_alt


@pytest.mark.parametrize("plot", PLOTS)
def test_an_unknown_theme_and_a_log_without_its_beginning_are_refused(plot: Any) -> None:
    with pytest.raises(InvalidConfigError, match="'light' or 'dark'"):
        plot(small(), theme="blue")
    with pytest.raises(PagedEngineError, match="max_events"):
        plot(list(small())[3:])


@pytest.mark.parametrize("plot", PLOTS)
def test_an_engine_that_did_nothing_has_a_plot(plot: Any) -> None:
    served = ContinuousEngine(OracleModel(), config=EngineConfig(num_blocks=8))
    plot(served.log).canvas.draw()


@pytest.mark.parametrize("plot", PLOTS)
def test_any_name_can_be_drawn(plot: Any) -> None:
    served = ContinuousEngine(OracleModel(), config=EngineConfig(num_blocks=8))
    name = "$a^{b$ \x00\n\ud800"
    served.add_request([30, 3], SamplingParams(max_tokens=3), request_id=name)
    served.step()
    figure = plot(served.log)
    figure.canvas.draw()
    if plot is not plot_metrics:
        assert "a^{b" in words_of(figure)


SETTINGS_STAY = """
import sys
import paged_engine.visualizer
assert "matplotlib" not in sys.modules, "the visualizer must work without it"
assert paged_engine.visualizer.plot_lanes is not None and "matplotlib" in sys.modules
import matplotlib
matplotlib.use("svg")
before = dict(matplotlib.rcParams)
from tests.unit.test_plots import PLOTS, small
for plot in PLOTS:
    plot(small()).canvas.draw()
assert dict(matplotlib.rcParams) == before
assert matplotlib.get_backend() == "svg"
assert "matplotlib.pyplot" not in sys.modules
"""


def test_settings_backend_and_pyplot_are_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SETTINGS_STAY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The block map -----------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("step", [1, 5, 18, 22, 24, 26])
def test_every_block_is_painted_as_the_state_says(step: int, theme: Any) -> None:
    state, names = state_at(small(), step), paper(theme == "dark")
    numbers = {name: i for i, name in enumerate(state.requests)}
    owners, figure = state.owners(), plot_blocks(small(), step, theme=theme)
    image, axes = pixels(figure), figure.axes[0]

    def at(x: float, y: float) -> tuple[float, ...]:
        column, row = axes.transData.transform((x, y))
        return tuple(image[round(image.shape[0] - row), round(column)])

    def near(colour: str) -> Any:
        return pytest.approx(to_rgb(colour), abs=0.02)

    for block_id, block in enumerate(state.blocks):
        y, x = divmod(block_id, 16)
        first, last = at(x + 0.1, y + 0.1), at(x + 0.8, y + 0.8)
        held = [colours(theme == "dark")[numbers[name]][0] for name in owners.get(block_id, [])]
        if len(held) > 1:
            assert first == near(held[0]) and last == near(held[1])
        elif held:
            name = owners[block_id][0]
            place = state.requests[name].block_table.index(block_id)
            slots = state.requests[name].num_computed_tokens - 4 * place
            assert first == near(held[0]) if slots > 0 else first == near(names["free"])
            assert last == near(held[0] if slots >= 4 else names["free"])
        else:
            inside = {at(x + 0.03 * i, y + 0.2) for i in range(2, 29)}
            hatched = min(abs(np.array(p) - to_rgb(names["hatch"])).max() for p in inside) < 0.1
            assert hatched == (block.block_hash is not None), f"block {block_id}"


def test_the_steps_above_show_every_kind_of_block() -> None:
    states = [state_at(small(), step) for step in (1, 5, 18, 22, 24, 26)]
    assert any(b.ref_cnt > 1 for s in states for b in s.blocks)
    assert any(s.num_cached for s in states)
    assert any(r.num_computed_tokens % 4 for s in states for r in s.requests.values())


def test_a_number_stands_beside_every_colour() -> None:
    figure = plot_blocks(small(), 18)
    state = state_at(small(), 18)
    on_blocks = Counter(t.get_text() for t in figure.axes[0].texts)
    held = Counter(
        f"×{len(names)}" if len(names) > 1 else str(list(state.requests).index(names[0]))
        for names in state.owners().values()
    )
    assert on_blocks == held
    assert "3  request-3: 14" in words_of(figure)
    assert "40 of 40 blocks are in use after step 18" in words_of(figure)
    assert "request-3 holds 14 with 55 tokens" in figure.pe_alt


def test_from_the_eighth_request_on_colours_have_patterns() -> None:
    requests = {str(i): RequestState(str(i), (1,), "running", [], 4, [i]) for i in range(15)}
    state = EngineState(4, 20, blocks=[BlockState(1)] * 15 + [BlockState()] * 5, requests=requests)
    figure = plot_blocks(state)
    legend = figure.axes[0].get_legend()
    looks = [(p.get_facecolor(), p.get_hatch() or "") for p in legend.get_patches()[:15]]
    assert len(set(looks)) == 15
    assert [bool(hatch) for _, hatch in looks] == [False] * 7 + [True] * 8
    assert looks[0][0] == looks[7][0] == looks[14][0]
    # the picture has them too, and not only its legend
    painted = [p.get_hatch() or "" for p in figure.axes[0].patches]
    assert painted[1:16] == [hatch for _, hatch in looks]


def test_of_a_large_pool_every_block_is_drawn_and_every_long_row_numbered() -> None:
    state = state_at(large(), read_run(large()).busiest_step)
    figure = plot_blocks(large())
    squares = sum(len(p.get_path().vertices) for p in figure.axes[0].patches)
    assert squares >= 5 * 4096
    numbers = {t.get_text() for t in figure.axes[0].texts}
    holding = [i for i, r in enumerate(state.requests.values()) if len(r.block_table) > 20]
    assert len(holding) > 10 and {str(i) for i in holding} <= numbers
    assert f"and {sum(bool(r.block_table) for r in state.requests.values()) - 16} more" in words_of(
        figure
    )


# The lanes ---------------------------------------------------------------------------------------


def test_chunks_and_decodes_lie_where_they_happened() -> None:
    figure, run = plot_lanes(small()), read_run(small())
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for collection in figure.axes[0].collections:
        for path in collection.get_paths():
            (left, low), (right, high) = path.vertices.min(0), path.vertices.max(0)
            kind = "chunk" if high - low > 0.5 else "decode"
            found.setdefault((kind, round((low + high) / 2)), []).append((left, right))
    for row, lane in enumerate(run.lanes):
        chunks = [(step - 1, step) for step, _ in lane.chunks]
        for kind, wanted in (("chunk", chunks), ("decode", lane.decodes)):
            got = [(round(left), round(right)) for left, right in found[kind, row]]
            assert got == wanted, (kind, lane.request_id)
    labels = [t.get_text().split() for t in figure.axes[0].get_yticklabels()]
    assert labels == [[lane.request_id, str(lane.number)] for lane in run.lanes]


def test_signs_say_what_happened_and_the_legend_names_only_them() -> None:
    figure, run = plot_lanes(small(), step=18), read_run(small())
    markers = Counter(
        (line.get_marker(), float(line.get_xdata()[0]))
        for line in figure.axes[0].lines
        if line.get_marker() not in ("None", "")
    )
    ends = {lane.request_id: lane.ended for lane in run.lanes}
    assert markers["v", 12.0] == 1  # late, injected after step 12
    assert markers["s", 25.0] == 1 and ends["request-3"] == (25, "abort")
    assert sum(n for (sign, _), n in markers.items() if sign == "o") == 4
    lost = [step for lane in run.lanes for step in lane.preempted]
    assert [at for sign, at in markers if sign == "x"] == [step - 0.5 for step in lost] and lost
    words = words_of(figure)
    for name in ("waiting", "injected", "preempted", "finished", "aborted", "budget"):
        assert name in words
    assert "error" not in words and "failed" not in words
    assert "late joins the batch in step 15, while 3 others decode" in words
    assert "late joins the batch in step 15" in figure.pe_alt


def test_the_strip_below_adds_up_to_what_each_step_computed() -> None:
    figure, run = plot_lanes(small()), read_run(small())
    decode, prefill = figure.axes[1].containers
    assert [b.get_height() for b in decode] == [s.num_decode_tokens for s in run.steps]
    assert [b.get_height() for b in prefill] == [s.num_prefill_tokens for s in run.steps]
    assert [b.get_y() for b in prefill] == [s.num_decode_tokens for s in run.steps]
    assert [round(b.get_x() + b.get_width() / 2 + 0.5) for b in prefill] == [
        s.number for s in run.steps
    ]


def test_lanes_and_blocks_can_be_drawn_in_axes_of_one_s_own() -> None:
    figure = Figure()
    above, below = figure.subplots(2)
    assert plot_blocks(small(), 18, ax=above) is figure
    told = figure.pe_alt  # type: ignore[attr-defined]
    assert plot_lanes(small(), ax=below) is figure
    assert figure.axes == [above, below] and above.patches and below.collections
    assert told.startswith("40 of 40") and figure.pe_alt.startswith("late joins")  # type: ignore[attr-defined]


# The metrics -------------------------------------------------------------------------------------


def test_rates_add_up_to_all_tokens() -> None:
    for log in (small(), large()):
        run = run_metrics(log)
        start, end = run.steps[0].began, run.steps[-1].ended - run.steps[0].began
        edges, rates = token_rates(run.steps, start, end)
        assert len(edges) == len(rates) + 1 and edges[-1] == pytest.approx(end)
        total = sum(r * (b - a) for r, a, b in zip(rates, edges, edges[1:], strict=False))
        assert total == pytest.approx(run.num_output_tokens)


def test_rates_worked_by_hand() -> None:
    def step(began: float, ended: float, tokens: int) -> StepMetrics:
        return StepMetrics(began, ended, 1, 0, 0, tokens, tokens, 0.5, 0.0)

    steps = [step(10, 12, 4), step(13, 14, 1)]
    assert token_rates(steps, 10, 4, number=4) == ([0.0, 2.0, 4.0], [2.0, 0.5])
    assert token_rates([*steps, step(14, 14, 0)], 10, 4, number=9)[0] == pytest.approx(
        [0, 4 / 3, 8 / 3, 4]
    )
    assert token_rates([], 0, 1) == ([0.0, 1.0], [0.0])


def test_the_panels_show_what_run_metrics_computes() -> None:
    run = run_metrics(small())
    figure = plot_metrics(small())
    rate, batch, ttft, use, fragmentation, itl = figure.axes
    start = run.steps[0].began
    for axes, values, scale in [
        (batch, run.batch_sizes, 1),
        (use, run.block_use, 100),
        (fragmentation, run.fragmentation, 100),
    ]:
        (line,) = axes.lines
        times, heights = line.get_xdata(), line.get_ydata()
        for step, value in zip(run.steps, values, strict=True):
            middle = (step.began + step.ended) / 2 - start
            shown = heights[np.searchsorted(times, middle) - 1]
            assert shown == pytest.approx(scale * value)
    for axes, number in [(ttft, 5), (itl, sum(len(r.itl) for r in run.requests))]:
        assert sum(p.get_height() for p in axes.patches) == number
        assert axes.get_xlabel().endswith("seconds")
    p50 = next(line for line in ttft.lines if line.get_label() == "p50").get_xdata()[0]
    half = run.percentile("ttft", 50)
    assert half is not None
    assert p50 == pytest.approx(half * (1000 if "milli" in ttft.get_xlabel() else 1))
    assert rate.lines[0].get_ydata()[0] == pytest.approx(run.output_throughput)
    assert f"{run.output_throughput:.1f} output tokens/s" in figure.pe_alt
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_a_stretch_without_work_is_shown_as_such() -> None:
    now = [0.0]
    config = EngineConfig(num_blocks=64, block_size=4)
    served = ContinuousEngine(OracleModel(), config=config, clock=lambda: now[0])
    for pause in (50.0, 0.0):
        served.add_request([30, 3], SamplingParams(max_tokens=3))
        while served.has_unfinished:
            now[0] += 0.5
            served.step()
        now[0] += pause
    batch = plot_metrics(served.log).axes[1].lines[0]
    assert list(batch.get_ydata()).count(0) >= 2


def test_metrics_can_be_drawn_in_a_subfigure() -> None:
    figure = Figure(figsize=(16, 6))
    left, right = figure.subfigures(1, 2)
    assert plot_metrics(small(), figure=right) is right
    assert len(right.axes) == 6 and not left.axes
    assert right.pe_alt.startswith("5 requests")
