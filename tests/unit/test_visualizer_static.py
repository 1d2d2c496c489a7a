"""The still pictures: what they show is what the log says, and nothing of when it was drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from paged_engine import ContinuousEngine, EngineConfig, EventLog, PagedEngineError, SamplingParams
from paged_engine import events as ev
from paged_engine.replay import BlockState, EngineState, RequestState, forget_finished
from paged_engine.visualizer import (
    Picture,
    batch_lanes_svg,
    block_map_svg,
    event_table,
    state_at,
    story_svg,
)
from paged_engine.visualizer.lanes import read_run
from paged_engine.visualizer.palette import NUM_COLOURS, style
from paged_engine.visualizer.static import WIDTH
from tests.helpers.fakes import OracleModel

SVG = "{http://www.w3.org/2000/svg}"
SQUARE = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z")
UPPER = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)l-[\d.]+ [\d.]+z")
LOWER = re.compile(r"M([\d.]+) ([\d.]+)v([\d.]+)h-[\d.]+z")


def engine(clock: Callable[[], float] | None = None, **options: int) -> ContinuousEngine:
    config = {"num_blocks": 64, "block_size": 4, "max_num_batched_tokens": 24, "max_num_seqs": 6}
    chosen = EngineConfig.from_options(**{**config, **options})
    more = {} if clock is None else {"clock": clock}
    return ContinuousEngine(OracleModel(), config=chosen, **more)


def add(
    served: ContinuousEngine, first: int, length: int, tokens: int, name: str | None = None
) -> str:
    prompt = [first, *range(3, 2 + length)]
    return served.add_request(prompt, SamplingParams(max_tokens=tokens), request_id=name)


def a_run(clock: Callable[[], float] | None = None) -> ContinuousEngine:
    """Chunks, waiting, an injection that shares two blocks, an abort."""
    served = engine(clock)
    for first, length, tokens in [(30, 11, 24), (31, 32, 20), (32, 22, 12), (33, 42, 40)]:
        add(served, first, length, tokens)
    for number in range(1, 100):
        if not served.has_unfinished:
            break
        served.step()
        if number == 12:
            add(served, 30, 31, 9, "late")
        if number == 25:
            served.abort("request-3")
    assert not served.has_unfinished
    return served


@pytest.fixture(scope="module")
def log() -> EventLog:
    return a_run().log


def root(picture: Picture) -> ET.Element:
    return ET.fromstring(picture.svg)


def drawn(picture: Picture, css: str) -> str:
    """The path data of everything with this class, put together."""
    return "".join(
        p.get("d", "") for p in root(picture).iter(f"{SVG}path") if p.get("class") == css
    )


def cells(picture: Picture) -> dict[tuple[float, float], set[str]]:
    """Which classes paint the cell at each corner; legend marks (around 0, 0) are left out."""
    found: dict[tuple[float, float], set[str]] = {}
    for element in root(picture).iter(f"{SVG}path"):
        css, d = element.get("class") or "hatch", element.get("d", "")
        for x, y, width, _ in SQUARE.findall(d):
            if css == "hatch" and "pe-hatch" not in (element.get("style") or ""):
                continue
            name = f"{css} {float(width):g}" if css[0] in "cl" and css != "cached" else css
            at = (float(x) - 0.5, float(y) - 0.5) if css.startswith("l") else (float(x), float(y))
            found.setdefault(at, set()).add(name)
        for x, y, _ in UPPER.findall(d):
            found.setdefault((float(x), float(y)), set()).add(f"{css} upper")
        for x, y, side in LOWER.findall(d):
            found.setdefault((float(x) - float(side), float(y)), set()).add(f"{css} lower")
    return found


# The block map ---------------------------------------------------------------------------------


def test_every_block_is_painted_as_the_state_says(log: EventLog) -> None:
    side = 26.0
    for step in range(26):
        state = state_at(log, step)
        numbers = {name: i for i, name in enumerate(state.requests)}
        owners, painted = state.owners(), cells(block_map_svg(state))
        for block_id, block in enumerate(state.blocks):
            classes = painted[(block_id % 8 * 28.0, block_id // 8 * 28.0)]
            holders = [f"c{numbers[name]}" for name in owners.get(block_id, [])]
            if not holders:
                assert classes == ({"free"} if block.block_hash is None else {"hatch"})
            elif len(holders) > 1:
                assert classes == {f"{holders[0]} upper", f"{holders[1]} lower"}
            else:
                name = owners[block_id][0]
                place = state.requests[name].block_table.index(block_id)
                slots = min(4, max(0, state.requests[name].num_computed_tokens - 4 * place))
                width = round(side * slots / 4, 1)
                expected = {f"{holders[0]} {width:g}"} if slots else set()
                if slots < 4:
                    expected |= {"free", f"l{holders[0][1:]} {side - 1:g}"}
                assert classes == expected, f"block {block_id} after step {step}"


def test_the_run_under_test_has_every_kind_of_block(log: EventLog) -> None:
    """So that the test above is not about free blocks only."""
    state = state_at(log, 17)
    assert any(block.ref_cnt > 1 for block in state.blocks)
    assert state.num_cached and state.num_used
    assert any(r.num_computed_tokens % 4 for r in state.requests.values() if r.block_table)


@pytest.mark.parametrize("num_blocks", [1, 16, 64, 100, 256, 512, 2048])
def test_a_pool_of_any_size_fits_and_leaves_gaps(num_blocks: int) -> None:
    picture = block_map_svg(EngineState(4, num_blocks, blocks=[BlockState()] * num_blocks))
    squares = SQUARE.findall(drawn(picture, "free"))
    assert len(squares) == num_blocks
    corners = {(float(x), float(y)) for x, y, _, _ in squares}
    assert len(corners) == num_blocks
    side = float(squares[0][2])
    assert side >= 5 and max(x for x, _ in corners) + side <= 932
    assert num_blocks == 1 or min(x for x, y in corners if x and not y) - side >= 0.9
    assert int(root(picture).get("height", "0")) <= 360


def test_of_a_very_large_pool_the_free_end_is_left_out() -> None:
    blocks = [BlockState(1)] * 300 + [BlockState()] * 49_700
    held = RequestState("a", (1,) * 1200, "running", [], 1200, list(range(300)))
    picture = block_map_svg(EngineState(4, 50_000, blocks=blocks, requests={"a": held}))
    assert "the first 320 of 50,000 shown" in picture.text
    assert len(SQUARE.findall(drawn(picture, "c0"))) == 300
    assert len(picture.svg) < 60_000


def test_the_eighth_request_has_the_first_colour_and_a_pattern() -> None:
    requests = {
        str(i): RequestState(str(i), (1,), "running", [], 4, [i])
        for i in range(2 * NUM_COLOURS + 1)
    }
    blocks = [BlockState(1)] * len(requests)
    paths = list(root(block_map_svg(EngineState(4, 9, blocks=blocks, requests=requests))).iter())
    styles = [(p.get("class"), p.get("style"), p.get("d")) for p in paths if p.tag == f"{SVG}path"]
    colours = Counter(css for css, _, _ in styles if css and re.fullmatch(r"c\d", css))
    assert colours["c0"] >= 3 and colours["c1"] >= 2
    laid_over = {d: over for _, over, d in styles if over and "pe-over" in over}
    plain, striped, dotted = (
        d for css, _, d in styles if css == "c0" and d and d.startswith(("M0", "M196", "M168"))
    )
    assert plain not in laid_over
    assert "pe-over1" in laid_over[striped] and "pe-over2" in laid_over[dotted]


# The lanes -------------------------------------------------------------------------------------


def test_the_lanes_hold_every_scheduled_token(log: EventLog) -> None:
    run = read_run(log)
    scheduled = Counter[str]()
    for event in log.of_kind("scheduled"):
        assert isinstance(event, ev.Scheduled)
        scheduled[event.request_id] += event.num_tokens
    for lane in run.lanes:
        prefill = sum(tokens for _, tokens in lane.chunks)
        decode = sum(end - start for start, end in lane.decodes)
        assert prefill + decode == scheduled[lane.request_id]
        assert prefill == lane.num_prompt_tokens - lane.num_cached_tokens
    ended = [event.num_tokens for event in log.of_kind("step_ended")]  # type: ignore[attr-defined]
    assert [s.num_prefill_tokens + s.num_decode_tokens for s in run.steps] == ended


def test_chunks_and_dashes_are_drawn_where_they_happened(log: EventLog) -> None:
    run, picture = read_run(log), batch_lanes_svg(log)
    step = (WIDTH - 28 - 130 - 10) / len(run.steps)
    for lane in run.lanes:
        boxes = SQUARE.findall(drawn(picture, f"c{lane.number}"))
        starts = [round((float(x) - 130) / step) for x, _, _, _ in boxes if float(x) >= 130]
        assert starts == [number - 1 for number, _ in lane.chunks]
        line = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", drawn(picture, f"l{lane.number}"))
        found = [tuple(round((float(x) - 130) / step) for x in pair) for pair in line]
        assert found == lane.decodes


def test_the_injected_request_is_marked_and_told(log: EventLog) -> None:
    lanes = {lane.request_id: lane for lane in read_run(log).lanes}
    late = lanes["late"]
    assert late.injected and late.queued == 12 and late.admitted == [13]
    assert [name for name, lane in lanes.items() if lane.injected] == ["late"]
    picture = batch_lanes_svg(log)
    assert picture.title == "late joins the batch in step 13, while 4 others decode"
    assert "late: 31 prompt tokens, added after step 12 while others were served" in picture.text
    assert ">injected<" in picture.svg and ">preempted<" not in picture.svg


def test_an_abort_and_a_good_end_look_different(log: EventLog) -> None:
    lanes = {lane.request_id: lane for lane in read_run(log).lanes}
    assert lanes["request-3"].ended == (25, "abort")
    svg = batch_lanes_svg(log).svg
    rings = len(re.findall(r'class="l\d" [^>]*d="M-4 0a', svg))
    squares = len(re.findall(r'class="l\d" [^>]*d="M-4 -4h8', svg))
    assert (rings, squares) == (4, 1)


def test_preemption_is_crossed_out_and_resumed() -> None:
    served = engine(num_blocks=10, enable_prefix_caching=False)
    for first in (30, 31):
        add(served, first, 12, 14)
    while served.has_unfinished:
        served.step()
    (lane,) = [lane for lane in read_run(served.log).lanes if lane.preempted]
    (lost,), (_, again) = lane.preempted, lane.admitted
    assert lost < again and (lost, again - 1) in lane.waits
    picture = batch_lanes_svg(served.log)
    assert picture.title == f"request-1 loses its blocks in step {lost}, resumes in step {again}"
    assert len(re.findall(r'class="alarm"', picture.svg)) == 2  # one in the legend


def test_a_step_that_failed_computed_nothing() -> None:
    model = OracleModel()
    config = EngineConfig(num_blocks=64, block_size=4)
    served = ContinuousEngine(model, config=config)
    model.fail_at = {model.num_forwards + 2, model.num_forwards + 3}
    add(served, 30, 5, 4)
    served.step()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            served.step()
    while served.has_unfinished:
        served.step()
    run = read_run(served.log)
    assert [step.failed for step in run.steps] == [False, True, True, False, False, False]
    assert run.lanes[0].decodes == [(3, 6)]
    assert batch_lanes_svg(served.log).svg.count(">!<") == 2


def test_a_request_that_waits_again_after_a_failed_step() -> None:
    model = OracleModel()
    served = ContinuousEngine(model, config=EngineConfig(num_blocks=64, block_size=4))
    model.fail_at = {model.num_forwards + 1}
    add(served, 30, 5, 2)
    with pytest.raises(RuntimeError):
        served.step()
    served.step()
    (lane,) = read_run(served.log).lanes
    assert lane.admitted == [2] and lane.chunks == [(2, 5)]


def test_a_prompt_of_one_token_is_a_prompt() -> None:
    served = engine()
    served.add_request([30], SamplingParams(max_tokens=3))
    while served.has_unfinished:
        served.step()
    (lane,) = read_run(served.log).lanes
    assert (lane.chunks, lane.decodes) == ([(1, 1)], [(1, 3)])


def test_a_name_used_twice_has_two_lanes_and_one_colour() -> None:
    served = engine()
    for first in (30, 31):
        add(served, first, 5, 3, "same")
        while served.has_unfinished:
            served.step()
    assert [(x.request_id, x.number) for x in read_run(served.log).lanes] == [("same", 0)] * 2


# The whole -------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_pictures_at_any_time(log: EventLog) -> None:
    ticks = iter(range(10**9))
    slow = a_run(lambda: 1e6 + next(ticks)).log
    assert [e.time for e in slow] != [e.time for e in log]
    assert story_svg(slow).svg == story_svg(log).svg
    assert repr(event_table(slow)) == repr(event_table(log))
    assert "1000000" not in story_svg(slow).svg + repr(event_table(slow))


def test_the_state_at_a_step_is_what_the_engine_had() -> None:
    served = engine()
    add(served, 30, 30, 9)
    add(served, 31, 12, 4)
    seen = [served.snapshot()]
    while served.has_unfinished:
        served.step()
        seen.append(served.snapshot())
    for step, state in enumerate(seen):
        assert forget_finished(state_at(served.log, step)) == state
    assert forget_finished(state_at(served.log)) == seen[-1]


def test_a_picture_is_told_as_well_as_shown(log: EventLog) -> None:
    picture = story_svg(log, 13)
    top = root(picture)
    assert top.get("role") == "img" and top[0].tag == f"{SVG}title"
    assert top[0].text == picture.title and top[1].text == picture.text
    words = repr(picture)  # where no picture can be shown, and wrapped for there
    assert words.split() == [*picture.title.split(), *picture.text.split()]
    assert max(map(len, words.splitlines())) <= 88
    assert picture._repr_svg_() == picture.svg
    assert picture.text.startswith("Blocks after step 13: ")
    assert ">after step 13<" in picture.svg


def test_the_default_step_is_the_first_with_the_most_blocks_in_use(log: EventLog) -> None:
    used = [state_at(log, s).num_used for s in range(len(log.of_kind("step_ended")) + 1)]
    assert story_svg(log).svg == story_svg(log, used.index(max(used))).svg


def test_a_picture_touches_nothing_of_the_page_it_stands_in() -> None:
    rules = re.sub(r"@media\([^)]*\)\{(.*?\})\}", r"\1", style()[len("<style>") : -len("</style>")])
    selectors = re.findall(r"([^{}]+)\{", rules)
    assert len(selectors) > 20 and all(s.startswith(".pe") for s in selectors)
    assert "prefers-color-scheme:dark" in style() and "var(--jp-layout-color1,#fff)" in style()


def test_any_name_makes_a_well_formed_picture() -> None:
    served = engine()
    name = 'a<script>&"]]>\x00\x1b\ud800 very long indeed'
    add(served, 30, 5, 3, name)
    served.step()
    picture = story_svg(served.log)
    assert root(picture)[0].text == "1 request in 1 step"
    assert "<script" not in picture.svg
    picture.svg.encode()  # can be written


def test_a_picture_is_saved_as_it_is(log: EventLog, tmp_path: Path) -> None:
    picture = batch_lanes_svg(log, title="Mine", step=3)
    picture.save(tmp_path / "lanes.svg")
    assert (tmp_path / "lanes.svg").read_bytes() == picture.svg.encode()
    assert root(picture)[0].text == "Mine"


def test_eight_requests_in_a_hundred_steps_are_small() -> None:
    served = engine(num_blocks=512, max_num_seqs=8)
    for number in range(8):
        add(served, 30 + number, 40, 85)
    while served.has_unfinished:
        served.step()
    assert len(served.log.of_kind("step_ended")) >= 95
    assert len(story_svg(served.log).svg) < 60_000


def test_two_hundred_steps_stay_apart() -> None:
    served = engine(num_blocks=256)
    add(served, 30, 8, 200)
    while served.has_unfinished:
        served.step()
    assert len(read_run(served.log).steps) == 200
    picture = batch_lanes_svg(served.log)
    ((_, y, width, _),) = [b for b in SQUARE.findall(drawn(picture, "c0")) if float(b[0]) >= 130]
    assert float(width) >= 2 and float(y) > 0
    numbers = [
        t.text for t in root(picture).iter(f"{SVG}text") if t.get("class") == "tiny soft mid"
    ]
    assert numbers == [str(n) for n in (1, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200)]


def test_an_engine_that_did_nothing_has_a_picture() -> None:
    served = engine()
    assert story_svg(served.log).title == "0 requests in 0 steps"
    assert story_svg(served.log, 0).svg == story_svg(served.log).svg


def test_a_log_that_lost_its_beginning_is_refused(log: EventLog) -> None:
    served = engine(max_events=20)
    add(served, 30, 5, 9)
    while served.has_unfinished:
        served.step()
    for draw in (story_svg, batch_lanes_svg, state_at):
        with pytest.raises(PagedEngineError, match="max_events"):
            draw(served.log)
    with pytest.raises(PagedEngineError, match="expected 0 to"):
        story_svg(log, 10_000)
    with pytest.raises(PagedEngineError, match="no step 10000"):
        state_at(log, 10_000)


# The table -------------------------------------------------------------------------------------


def test_the_table_says_what_happened() -> None:
    served = engine()
    add(served, 30, 9, 2)
    served.step()
    assert repr(event_table(served.log, first=6)) == (
        "step  event           request    detail\n"
        "   0  engine_started             64 blocks of 4 tokens\n"
        "   0  queued          request-0  9 prompt tokens, at most 2 more\n"
        "   1  step_began                 budget of 24 tokens\n"
        "   1  admitted        request-0\n"
        "   1  allocated       request-0  blocks 0 to 2\n"
        "   1  scheduled       request-0  9 tokens, positions 0 to 8\n"
        f"... and {len(served.log) - 6} more"
    )


def test_the_table_chooses_kinds(log: EventLog) -> None:
    table = event_table(log, kinds={"finished", "aborted"})
    assert len(table) == 5 and "more" not in repr(table)
    assert table.rows[-1] == ("25", "aborted", "request-3", "")
    assert len(event_table(log, kinds="preempted")) == 0
    assert len(event_table(log, first=0)) == 0
    with pytest.raises(PagedEngineError, match="no event is of kind"):
        event_table(log, kinds="finish")
    with pytest.raises(PagedEngineError, match="first is -1"):
        event_table(log, first=-1)


EVENTS: list[ev.Event] = [
    ev.Hit(9.5, 1, "a", (0, 1, 2, 7)),
    ev.Copied(9.5, 1, 3, 4),
    ev.Evicted(9.5, 1, 3),
    ev.Preempted(9.5, 1, "a"),
    ev.Requeued(9.5, 1, "a", "waiting"),
    ev.Token(9.5, 1, "a", 17, "a\nb"),
    ev.Freed(9.5, 1, "a", tuple(range(0, 200, 2))),
    ev.StepEnded(9.5, 1, 0, failed=True),
    ev.PoolResized(9.5, 1, 9),
    ev.ParametersChanged(9.5, 1, 8, 64),
]


def test_every_kind_of_event_has_its_line() -> None:
    table = event_table(EVENTS)
    details = [row[3] for row in table.rows]
    assert details[:6] == [
        "blocks 0 to 2, 7",
        "block 3 to 4",
        "block 3",
        "",
        "waiting",
        r"17 'a\nb'",
    ]
    assert details[7:] == ["failed, rolled back", "9 blocks usable", "8 requests, 64 tokens a step"]
    lines = repr(table).splitlines()
    assert len(lines) == len(EVENTS) + 1
    assert max(map(len, lines)) <= 88 and "9.5" not in repr(table)
