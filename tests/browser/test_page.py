"""What the page shows and what it does when it is touched, in a plain page with the same module."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from paged_engine.visualizer.page import WEB, widget_module
from paged_engine.visualizer.timeline import Timeline
from tests.browser.conftest import settle
from tests.browser.runs import eventful
from tests.engine.engine_helpers import greedy, oracle_engine
from tests.helpers.fakes import ByteTokenizer, OracleModel


@pytest.fixture
def page(show: Callable[..., Any]) -> Any:
    return show(
        Timeline(eventful().log, describe=lambda event: f"prompt {event.request_id}").document()
    )


def go_to(page: Any, count: int) -> None:
    page.evaluate(f"view.goTo({count})")
    settle(page)


def colour_at(page: Any, block: int, share: float = 0.3) -> list[int]:
    """The pixel of a block at that share of its side."""
    return page.evaluate(
        f"""() => {{
            const [x, y] = view.blocks.place({block});
            const side = view.blocks.grid.cell - 2;
            const canvas = view.blocks.canvas;
            const scale = canvas.width / canvas.clientWidth;
            const c = canvas.getContext("2d");
            return Array.from(c.getImageData((x + side * {share}) * scale,
                (y + side * {share}) * scale, 1, 1).data.slice(0, 3));
        }}"""
    )


def text_of(page: Any, name: str) -> str:
    return page.inner_text(f'[data-pe="{name}"]')


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_a_block_has_the_colour_of_its_owner(page: Any) -> None:
    go_to(page, 3)
    table = page.evaluate("view.shown.requests[0].table")
    assert colour_at(page, table[0]) == rgb("#0072b2")
    assert colour_at(page, 23) == rgb("#e9ebef")  # free


def test_a_shared_block_has_two_colours_and_a_last_block_is_part_full(page: Any) -> None:
    found = page.evaluate(
        """() => { for (let n = 1; n <= view.history.length; n++) {
            const s = view.history.at(n);
            const shared = s.ref.findIndex((ref) => ref > 1);
            if (shared >= 0) return [n, shared];
        } }"""
    )
    go_to(page, found[0])
    assert colour_at(page, found[1], 0.25) != colour_at(page, found[1], 0.75)
    assert "ref 2" in page.evaluate(f"view.blocks.describe({found[1]})")
    go_to(page, 1)
    last = page.evaluate("view.shown.requests[0].table.at(-1)")  # 11 tokens in blocks of 4
    assert colour_at(page, last, 0.2) == rgb("#0072b2")
    assert colour_at(page, last, 0.85) == rgb("#e9ebef")


def test_the_line_under_the_map_says_all_of_the_block_under_the_mouse(page: Any) -> None:
    go_to(page, 4)
    table = page.evaluate("view.shown.requests[0].table")
    x, y = page.evaluate(f"view.blocks.place({table[1]})")
    page.hover('[data-pe="blocks"]', position={"x": x + 4, "y": y + 4})
    says = text_of(page, "block-says")
    assert says.startswith(f"block {table[1]} · R0 block 2 of {len(table)} · ref 1 · tokens 4 to 7")


def test_a_block_is_picked_by_click_and_by_keys(page: Any) -> None:
    go_to(page, 4)
    block = page.evaluate("view.shown.requests[0].table[0]")
    x, y = page.evaluate(f"view.blocks.place({block})")
    page.click('[data-pe="blocks"]', position={"x": x + 4, "y": y + 4})
    assert page.evaluate("view.pick") == {"request": 0, "block": block, "position": None}
    page.keyboard.press("ArrowRight")
    assert page.evaluate("view.pick.block") == block + 1
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.evaluate("view.pick") == {"request": 0, "block": block, "position": None}
    assert page.inner_text("[role=status]").startswith(f"block {block} ")
    page.keyboard.press("Escape")
    assert page.evaluate("view.pick") == {"request": None, "block": None, "position": None}


def test_a_picked_request_dims_the_others_and_its_tokens_can_be_picked(page: Any) -> None:
    go_to(page, 12)
    others = page.evaluate(
        "view.shown.requests.filter((r) => r.number !== 0 && r.table.length)[0].table[0]"
    )
    before = colour_at(page, others)
    page.click(".pe-row[data-request='0'] .pe-chip")
    settle(page)
    assert colour_at(page, others) != before
    page.click(".pe-row[data-request='0'] .pe-token >> nth=0")
    pick = page.evaluate("view.pick")
    prompt, table = page.evaluate("[view.shown.requests[0].prompt, view.shown.requests[0].table]")
    assert pick["position"] == prompt
    assert pick["block"] == table[prompt // 4]


def test_scrubbing_goes_back_and_forth_to_the_same_pictures(page: Any) -> None:
    def picture(count: int) -> Any:
        go_to(page, count)
        return page.evaluate("[...document.querySelectorAll('canvas')].map((c) => c.toDataURL())")

    first = picture(10)
    assert picture(25) != first
    assert picture(10) == first
    page.locator('[data-pe="slider"]').fill("17")
    assert page.evaluate("view.count") == 17
    page.click('[data-pe="back"]')
    assert page.evaluate("view.count") == 16
    page.click('[data-pe="step"]')
    page.click('[data-pe="live"]')
    assert page.evaluate("view.cursor") is None


def test_a_replay_plays_to_its_end_and_stops(page: Any) -> None:
    says = "document.querySelector('[data-pe=play]').textContent"
    page.select_option('[data-pe="speed"]', "5")
    go_to(page, page.evaluate("view.history.length") - 8)
    page.click('[data-pe="play"]')
    page.wait_for_function(f"{says} === 'pause'")
    page.wait_for_function("view.cursor === null && !view.state.playing")
    page.wait_for_function(f"{says} === 'play'")


SPEEDS = """() => {
    const set = window.setInterval, pauses = [];
    window.setInterval = (act, pause) => pauses.push(pause) && set(act, pause);
    const choose = (speed) => {
        view.find("speed").value = speed;
        view.find("speed").dispatchEvent(new Event("change"));
    };
    view.goTo(1);
    choose("5");
    view.find("play").click();
    choose("1");
    choose("0");
    view.find("play").click();
    choose("20");
    window.setInterval = set;
    return [pauses, view.timer];
}"""


def test_a_replays_speed_can_be_changed_while_it_plays(page: Any) -> None:
    assert page.evaluate(SPEEDS) == [[200, 1000, 50], None]


def test_a_replay_has_no_controls_that_need_an_engine(page: Any) -> None:
    for name in ("inject", "pool", "breaks"):
        assert not page.is_visible(f'[data-pe="{name}"]')
    assert page.locator(".pe-abort:visible").count() == 0


def test_the_lanes_say_what_happened_in_a_step(page: Any) -> None:
    lane, step = page.evaluate(
        """() => { view.goTo(view.history.length); view.draw();
            const row = view.lanes.shown.findIndex((lane) => lane.preempted.length);
            return [row, view.lanes.shown[row].preempted[0]]; }"""
    )
    x = f"40 + ({step} - view.lanes.from - 0.5) * view.lanes.size"
    describe = f"view.lanes.describe({x}, {lane} * 19 + 9)"
    assert "preempted" in page.evaluate(describe)
    describe = "view.lanes.describe(40 + 0.5 * view.lanes.size, 9)"
    assert page.evaluate(describe).startswith("R0 · step 1 · prefill, 11 tokens")
    below = "view.lanes.describe(40 + 0.5 * view.lanes.size, 19 * 24)"
    assert page.evaluate(below).startswith("step 1: 11 tokens of prompt and 0 decoded")


def test_the_slider_has_a_mark_for_every_preemption_and_each_gauge_a_line(page: Any) -> None:
    preempted = page.evaluate("view.ticks")
    marks = page.get_attribute('[data-pe="ticks"]', "d").split("M")[1:]
    last = page.evaluate("view.history.length")
    assert preempted and [float(mark.split()[0]) for mark in marks] == pytest.approx(
        [1000 * frame / last for frame in preempted], abs=0.1
    )
    lines = page.eval_on_selector_all(
        ".pe-gauges path", "(all) => all.map((p) => [p.getAttribute('d'), p.getBBox().height])"
    )
    assert len(lines) == 5 and all(d.count("L") > 1 and height > 0 for d, height in lines)
    box = page.get_attribute(".pe-gauges svg", "viewBox")
    width, height = map(float, box.split()[2:])
    points = [tuple(map(float, point.split())) for point in lines[0][0][1:].split("L")]
    assert all(0 <= x <= width and 0 < y < height for x, y in points)


def test_every_control_has_a_name(page: Any) -> None:
    """Those of a live view too."""
    page.evaluate("view.setStatus({live: true})")
    settle(page)
    nameless = page.evaluate(
        """() => {
            const named = (e) => e.getAttribute("aria-label") || e.textContent.trim() ||
                e.closest("label")?.textContent.trim() || e.getAttribute("aria-hidden");
            const all = document.querySelectorAll("button, input, select, canvas, summary");
            return [...all].filter((e) => !named(e)).map((e) => e.outerHTML);
        }"""
    )
    assert nameless == []


def test_what_the_reader_does_is_sent(page: Any) -> None:
    page.evaluate("window.sent = []; view.send = (m) => sent.push(m); null")
    page.evaluate("view.setStatus({ live: true })")
    settle(page)
    page.click('[data-pe="play"]')
    page.click('[data-pe="step"]')
    page.click('[data-pe="end"]')
    page.select_option('[data-pe="speed"]', "5")
    page.click("summary")
    page.check("input[value=preempted]")
    page.fill("input[name=prompt]", "hello <b>")
    page.fill("input[name=max]", "7")
    page.fill("input[name=priority]", "-1")
    page.keyboard.press("Enter")
    page.fill("input[name=usable]", "9")
    page.click("text=resize the pool")
    assert page.evaluate("sent") == [
        {"cmd": "play"},
        {"cmd": "step"},
        {"cmd": "end"},
        {"cmd": "speed", "value": 5},
        {"cmd": "breaks", "value": ["preempted"]},
        {"cmd": "inject", "prompt": "hello <b>", "max_tokens": 7, "priority": -1},
        {"cmd": "resize", "value": 9},
    ]


def test_keys_pressed_in_the_view_do_not_reach_the_notebook(page: Any) -> None:
    page.evaluate("window.keys = 0; document.addEventListener('keydown', () => keys++)")
    page.focus('[data-pe="blocks"]')
    page.keyboard.press("a")
    assert page.evaluate("keys") == 0


def test_text_of_a_model_is_text_and_nothing_else(show: Callable[..., Any]) -> None:
    timeline = Timeline(eventful().log, describe=lambda _: "<img src=x onerror=alert(1)></script>")
    page = show(timeline.document())
    page.click(".pe-row .pe-chip")
    settle(page)
    assert page.locator("#view img").count() == 0
    assert "</script>" in page.inner_text(".pe-row .pe-text >> nth=0")


@pytest.mark.parametrize("width", [420, 700, 1280])
def test_a_text_is_seen_to_grow_at_its_end(show: Callable[..., Any], width: int) -> None:
    engine = oracle_engine(OracleModel(vocab_size=256), tokenizer=ByteTokenizer(), num_blocks=200)
    engine.add_request("once upon a time", greedy(300))
    while engine.has_unfinished:
        engine.step()
    page = show(Timeline(engine.log).document(), width=width)
    for count in (200, 280):
        go_to(page, count)
        settle(page)
        whole = page.evaluate("view.shown.requests[0].text")
        shown = page.evaluate("document.querySelector('.pe-row .pe-text').textContent")
        assert len(whole) > 150 > len(shown) > 5
        assert shown.startswith("… ") and whole.endswith(shown[2:])
    go_to(page, 300)  # it has ended, and is read from its beginning
    whole = page.evaluate("view.shown.requests[0].text")
    assert whole.startswith(page.evaluate("document.querySelector('.pe-row .pe-text').textContent"))


@pytest.mark.parametrize(
    "text, columns, end",
    [
        ("once upon", 9, "once upon"),
        ("once upon", 4, "upon"),
        ("once upon", 0, ""),
        ("", 5, ""),
        ("从前有座山", 10, "从前有座山"),
        ("从前有座山", 9, "前有座山"),
        ("옛날 옛적", 5, " 옛적"),
        ("ab😀", 3, "b😀"),
        ("ab😀", 1, ""),  # no half of it
    ],
)
def test_the_end_of_a_text_is_as_wide_as_its_characters(
    page: Any, text: str, columns: int, end: str
) -> None:
    code = "\n".join([(WEB / "look.js").read_text(encoding="utf-8"), "endOf"])
    assert page.evaluate("([code, ...given]) => eval(code)(...given)", [code, text, columns]) == end


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_is_cut_off_at_any_width(show: Callable[..., Any], width: int, scheme: str) -> None:
    page = show(Timeline(eventful().log).document(), width=width, scheme=scheme)
    assert page.evaluate("view.root.classList.contains('pe-dark')") is (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].every((c) => {
            const a = c.getBoundingClientRect(), b = c.parentElement.getBoundingClientRect();
            return a.right <= b.right + 1 && a.left >= b.left - 1; })"""
    )
    assert inside


@pytest.mark.parametrize("num_blocks", [1, 5, 4096, 65_536])
def test_a_pool_of_any_size_is_drawn(show: Callable[..., Any], num_blocks: int) -> None:
    engine = oracle_engine(num_blocks=num_blocks)
    engine.add_request([1], greedy(3))
    engine.step()
    page = show(Timeline(engine.log).document())
    grid = page.evaluate("view.blocks.grid")
    assert grid["columns"] * grid["rows"] >= num_blocks
    used = page.evaluate("view.shown.requests[0].table[0]")
    assert (
        page.evaluate(f"view.blocks.blockAt(...view.blocks.place({used}).map((v) => v + 0.5))")
        == used
    )
    assert page.evaluate("view.blocks.canvas.clientHeight") < 900


def test_an_empty_run_is_drawn(show: Callable[..., Any]) -> None:
    page = show(Timeline().document())
    assert text_of(page, "where") == "step 0 / 0"


PLAYED_IN = 250  # milliseconds, in which a message's frames are shown
FOLLOW = """([key, status, playedIn, rest]) => {
    const frames = view.history.frames.slice();
    const begin = 1e6;
    let now = begin;
    performance.now = () => now;
    view.load({ key, frames: [] });
    view.setStatus({ live: true, playing: true });
    view.addFrames(0, frames);
    view.setStatus(status);
    Object.assign(view, { playedIn, rest: rest * playedIn });
    return [0, 0.25, 0.5, 0.995, 1].map((share) => {
        now = begin + share * playedIn;
        view.draw();
        return view.count;
    });
}"""


def test_the_steps_of_one_message_are_shown_one_after_the_other(show: Callable[..., Any]) -> None:
    document = Timeline(eventful().log).document()
    count = len(document["frames"])
    page = show(document)
    shown = page.evaluate(FOLLOW, [document["key"], {}, PLAYED_IN, 0])
    assert shown == [0, -(-count // 4), -(-count // 2), count, count]
    # a picture shows what is due until the next one
    shown = page.evaluate(FOLLOW, [document["key"], {}, PLAYED_IN, 0.5])
    assert shown == [-(-count // 2), -(-count * 3 // 4), count, count, count]
    assert page.evaluate(FOLLOW, [document["key"], {}, PLAYED_IN, 1.2]) == [count] * 5
    # after a pause the last step is shown at once
    paused = [document["key"], {"playing": False}, PLAYED_IN, 0]
    assert page.evaluate(FOLLOW, paused) == [count] * 5


def test_a_view_that_was_hidden_is_drawn_when_it_is_shown(page: Any) -> None:
    page.evaluate(
        """async () => {
            const next = () => new Promise((done) => requestAnimationFrame(done));
            view.observer.disconnect(); // it does not always tell
            view.root.style.display = "none";
            view.sizes = null;
            view.wake();
            await next(); await next();
            view.root.style.display = "";
        }"""
    )
    settle(page)


HIDDEN_WHILE_PLAYING = """async (key) => {
    const frames = view.history.frames.slice();
    const pause = () => new Promise((done) => setTimeout(done, 600));
    const draw = view.draw;
    let tries = 0;
    view.draw = function () {
        tries += 1;
        draw.call(this);
    };
    view.observer.disconnect(); // it would say that the view is shown again
    view.root.style.display = "none";
    view.sizes = null;
    view.load({ key, frames: [] });
    view.setStatus({ live: true, playing: true });
    view.addFrames(0, frames);
    await pause();
    const before = tries;
    view.root.style.display = "";
    view.addFrames(frames.length, []);
    await pause();
    return [before, view.count];
}"""


def test_a_hidden_view_waits_for_the_next_message(show: Callable[..., Any]) -> None:
    """As in a tab of JupyterLab that is behind another."""
    document = Timeline(eventful().log).document()
    tries, count = show(document).evaluate(HIDDEN_WHILE_PLAYING, document["key"])
    assert tries <= 2
    assert count == len(document["frames"])


CHANGED = """async ([change, isDrawn]) => {
    const pause = (time) => new Promise((done) => setTimeout(done, time));
    await pause(200); // what was asked for before is drawn
    const before = view.drawn;
    eval(change);
    await pause(200);
    for (let i = 0; i < 500 && isDrawn && view.drawn === before; i++) await pause(20); // if slow
    return view.drawn - before;
}"""


def test_a_view_that_grew_is_not_drawn_again_but_a_wider_one_is(page: Any) -> None:
    """A picture may make the view higher itself."""
    assert page.evaluate(CHANGED, ["view.root.style.height = '3000px'", False]) == 0
    assert page.evaluate(CHANGED, ["view.root.style.width = '700px'", True]) > 0


def test_a_part_that_comes_into_sight_is_drawn(page: Any) -> None:
    move = "view.find('requests').parentElement.style.marginTop = "
    assert page.evaluate(CHANGED, [f"{move} '3000px'", False]) == 0
    assert page.evaluate("view.unseen.has(view.find('requests'))")
    assert page.evaluate(CHANGED, [f"{move} ''", True]) > 0
    assert not page.evaluate("view.unseen.has(view.find('requests'))")


REST = """async ([cores, idleCores, takes]) => {
    Object.defineProperty(navigator, "hardwareConcurrency", { configurable: true, value: cores });
    view.idleCores = idleCores;
    view.rest = null;
    const now = performance.now;
    let clock = 1000; // stands still but for the picture, whatever else this machine does
    performance.now = () => clock;
    view.weigh();
    clock += takes;
    while (view.rest === null) await new Promise((done) => setTimeout(done));
    performance.now = now;
    return view.rest;
}"""


def test_a_view_rests_less_where_cores_are_idle(page: Any) -> None:
    assert page.evaluate(REST, [2, 0, 6]) == 600, "an engine needs both: no longer than this"
    assert page.evaluate(REST, [8, 0, 6]) == pytest.approx(244)  # 6 of 250 ms, on one of 8 cores
    assert page.evaluate(REST, [2, 1, 6]) == 20, "no shorter than this"
    assert page.evaluate(REST, [2, 1, 60]) == pytest.approx(180)  # a quarter of the idle one
    assert page.evaluate(REST, [2, 60, 90]) == pytest.approx(90), "this machine has but two"


WIDGET = """async ([code, saved]) => {
    const { default: widget } = await import(URL.createObjectURL(
        new Blob([code], { type: "text/javascript" })));
    window.pause = (time) => new Promise((done) => setTimeout(done, time));
    window.shown = async (place = document.body, hasLayout = true) => {
        const sent = [], heard = [], told = [];
        const layout = hasLayout ? { comm_live: true, on: (_, act) => told.push(act),
            off: () => told.pop() } : undefined;
        const state = { parts: ["controls", "blocks"], live: true, about: "a model", layout,
            saved: new DataView(new Uint8Array(saved).buffer) };
        const model = {
            get: (name) => state[name],
            on: (_, act) => heard.push(act),
            off: () => {},
            send: (message) => sent.push(message.cmd),
        };
        const el = document.createElement("div");
        place?.append(el);
        const close = await widget.render({ model, el });
        const setLive = (isLive) => {
            layout.comm_live = isLive;
            told.forEach((act) => act());
        };
        return { close, el, hear: heard[0], sent, setLive, told, view: el.firstChild.view };
    };
}"""


TOUCHED = """async ([answers, clicked]) => {
    const { close, hear, sent, view } = await shown();
    if (clicked) view.find("play").click();
    else view.setPick({ request: null, block: 3, position: null });
    if (answers) hear({ kind: "status", status: { playing: true } });
    await pause(200);
    if (answers === null) view.find("play").click();
    close();
    await pause(100);
    return sent;
}"""


@pytest.mark.parametrize(
    "answers, clicked, words",
    [
        (True, True, ["ready", "play", "gone"]),
        (False, True, ["ready", "play", "alive", "alive", "alive", "gone"]),
        (None, True, ["ready", "play", "alive", "alive", "alive", "play", "gone"]),
        (False, False, ["ready", "pick", "gone"]),
    ],
)
def test_a_click_is_followed_by_words_until_it_is_answered(
    page: Any, answers: bool | None, clicked: bool, words: list[str]
) -> None:
    """They carry the acknowledgement that the server waits for before it sends the answer."""
    page.evaluate(WIDGET, [widget_module(), []])
    assert page.evaluate(TOUCHED, [answers, clicked]) == words


UNANSWERED = """async () => {
    const { close, hear, view } = await shown(document.body, false); // not every frontend has it
    const said = async () => {
        await pause(100);
        view.draw();
        return view.find("error").textContent;
    };
    const answer = () => hear({ kind: "status", status: { error: "" } });
    const all = [];
    view.find("step").click();
    answer();
    all.push(await said());
    view.find("step").click();
    all.push(await said());
    answer();
    all.push(await said());
    view.find("step").click();
    all.push(await said());
    close();
    return all;
}"""


def test_a_reader_is_told_that_no_engine_answers(page: Any) -> None:
    code = widget_module()
    quick = re.sub(r"(?m)^const PATIENCE = \d+;", "const PATIENCE = 30;", code)
    assert quick != code
    page.evaluate(WIDGET, [quick, []])
    at_once, late, then, again = page.evaluate(UNANSWERED)
    assert at_once == then == ""
    assert late == again
    assert "has not answered" in late and "run the cell again" in late


SAVED = """async () => {
    const { close, sent, setLive, told, view } = await shown();
    const state = () => { view.draw(); return [view.state.live, view.state.playing, view.count,
        view.find("about").textContent, view.find("breaks").hidden, Boolean(view.timer)]; };
    const all = [state()];
    view.setStatus({ playing: true });
    setLive(false);
    all.push(state());
    view.goTo(view.history.length - 3);
    view.find("speed").value = "20";
    view.find("speed").dispatchEvent(new Event("change"));
    view.find("play").click();
    all.push(state());
    while (view.cursor !== null) await pause(5); // it plays to the end
    all.push(state());
    view.goTo(view.history.length - 3);
    view.find("play").click();
    setLive(true);
    all.push(state());
    close();
    return [all, sent, told.length];
}"""


def test_without_a_kernel_a_view_is_a_replay_of_what_was_saved(page: Any) -> None:
    timeline = Timeline(eventful().log)
    page.evaluate(WIDGET, [widget_module(), list(timeline.packed(1_000_000))])
    (live, gone, playing, ended, again), sent, listeners = page.evaluate(SAVED)
    count = len(timeline.document()["frames"])
    assert live == [True, False, count, "a model", False, False]
    about = "a model · a replay until the cell is run"
    assert gone == ended == [False, False, count, about, True, False]
    assert playing == [False, True, count - 3, about, True, True]
    assert again == [True, False, count - 3, "a model", False, False]
    assert sent == ["ready", "gone"] and listeners == 0


LATE = """async () => {
    const { el, view } = await shown(null);
    window.view = view;
    view.goTo(4);
    view.draw(); // where is no page there are neither sizes nor colours
    const before = view.drawn;
    document.body.prepend(el);
    for (let i = 0; i < 500 && view.drawn === before; i++) await pause(20);
}"""


def test_a_view_that_is_put_into_the_page_later_has_its_colours(page: Any) -> None:
    """As JupyterLab does with one that was saved."""
    timeline = Timeline(eventful().log)
    page.evaluate(WIDGET, [widget_module(), list(timeline.packed(1_000_000))])
    page.evaluate(LATE)
    assert colour_at(page, 23) == rgb("#e9ebef")  # free


LATE_REQUEST = """async ([key, playedIn]) => {
    const frames = view.history.frames.slice();
    const late = frames.findLastIndex((frame) => frame.o.some(([name]) => name === "q"));
    let now = performance.now();
    performance.now = () => now;
    view.playedIn = playedIn;
    view.load({ key, frames: [] });
    view.setStatus({ live: true, playing: true });
    const rows = [];
    for (const until of [late, late + 1, late + 2]) {
        view.addFrames(view.history.length, frames.slice(view.history.length, until));
        now += playedIn; // all of a message is played
        view.draw();
        rows.push([view.find("requests").children.length, view.find("where").textContent]);
    }
    return rows;
}"""


def test_a_new_request_is_listed_with_the_picture_that_has_its_lane(page: Any) -> None:
    """However long the words rest."""
    page.evaluate("view.wordsPause = 1e6")
    document = Timeline(eventful().log).document()
    before, then, later = page.evaluate(LATE_REQUEST, [document["key"], PLAYED_IN])
    assert then[0] == before[0] + 1 == later[0]
    assert before[1] != then[1] == later[1]


SCROLLED_AWAY = """async ([key, playedIn]) => {
    const frames = view.history.frames.slice();
    const half = 1 + frames.findLastIndex((frame) => frame.o.some(([name]) => name === "q"));
    const requests = view.find("requests");
    requests.parentElement.style.marginTop = "3000px";
    while (!view.unseen.has(requests)) await new Promise((done) => requestAnimationFrame(done));
    let now = performance.now();
    performance.now = () => now;
    view.playedIn = playedIn;
    view.load({ key, frames: [] });
    view.setStatus({ live: true, playing: true });
    view.addFrames(0, frames.slice(0, half));
    view.whole = true;
    now += playedIn; // all of a message is played
    view.draw();
    view.addFrames(half, frames.slice(half));
    const said = () => [view.find("where").textContent, requests.textContent];
    const then = [said()];
    for (const passed of [1300, 2800]) {
        now += passed;
        view.draw();
        then.push(said());
    }
    requests.parentElement.style.marginTop = "";
    while (view.unseen.has(requests)) await new Promise((done) => requestAnimationFrame(done));
    return then;
}"""


def test_what_is_out_of_sight_changes_seldom_while_an_engine_plays(
    show: Callable[..., Any],
) -> None:
    document = Timeline(eventful().log).document()
    page = show(document)
    half, soon, later = page.evaluate(SCROLLED_AWAY, [document["key"], PLAYED_IN])
    last = f"step {document['frames'][-1]['s']} / {document['frames'][-1]['s']}"
    assert half[0] != last and soon[0] == later[0] == last
    assert half[1] and soon[1] == half[1] != later[1]
