"""What the live view costs and how fast the page is, measured in a real browser.

    python -m tests.browser.measure

Run it on a quiet machine.  Throughput with and without a view is measured in one JupyterLab, in
turns, by two engines of one model, once while they leave one core to others and once while they
take all; the rest in a page of its own.  A processor's speed changes over minutes by more than the
view costs, so what is compared are the two runs of a round, and the processor time that browser and
server take is counted too.  That differs as well, by what the browser clears away in a round, but
tells sooner what a change brings.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

from paged_engine.visualizer.page import replay_page
from paged_engine.visualizer.timeline import Timeline
from tests.browser.lab import BROWSERS, Lab, Notebook, open_browser
from tests.engine.engine_helpers import greedy, oracle_engine

ROUNDS = 12
SETTLED = 20  # seconds until a new page has cleared away what loading it left
VIEW = '[data-testid="engine-view"]'
SETUP = """\
import asyncio, time
from paged_engine import ContinuousEngine, SamplingParams
from paged_engine.visualizer import EngineView

engine = ContinuousEngine.from_pretrained(
    num_blocks=4096, block_size=16, max_num_seqs=8, enable_prefix_caching=False, progress=False
)
bare = ContinuousEngine(engine.core.runner, engine.tokenizer, engine.config)  # nobody looks on
params = SamplingParams(max_tokens=192, ignore_eos=True)

def fill(engine):
    for number in range(8):
        engine.add_request(list(range(100 + number, 164 + number)), params)

def run(engine):
    began = time.perf_counter()
    while engine.has_unfinished:
        engine.step()
    return 8 * 192 / (time.perf_counter() - began)

rates, seconds = {"alone": [], "viewed": []}, []
for each in (engine, bare):
    fill(each)
    run(each)
"""
LEAVE_A_CORE = """\
import os, torch
torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
"""
ALONE = """\
fill(bare)
rates["alone"].append(run(bare))
"""
VIEWED = """\
fill(engine)
began = time.perf_counter()
view.play()
async def watch():  # until the last token, as above
    while engine.has_unfinished:
        await asyncio.sleep(0.01)
    seconds.append(time.perf_counter() - began)
    rates["viewed"].append(8 * 192 / seconds[-1])
    open(f"round{len(rates['viewed'])}", "w").close()
watcher = asyncio.get_running_loop().create_task(watch())
"""


def cost_of_the_view(browser: Any, setup: str) -> None:
    """Throughput of the default model, batch 8, 4,096 blocks, with a page looking on or without."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as private:
        notebook = nbformat.v4.new_notebook()
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        cells = (setup, "view = EngineView(engine)\nview")
        notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(notebook, Path(folder) / "cost.ipynb")
        lab = Lab(Path(folder), Path(private))
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1100})
            opened = Notebook(lab, page, "cost.ipynb")
            opened.run_all()
            page.wait_for_selector(VIEW, timeout=180_000)
            page.set_default_timeout(180_000)
            time.sleep(SETTLED)
            pictures = 0
            for number in range(ROUNDS):
                took = {ALONE: 0.0, VIEWED: 0.0}
                before = page.evaluate(f"document.querySelector('{VIEW}').view.drawn")
                for code in (ALONE, VIEWED) if number % 2 else (VIEWED, ALONE):
                    start = processor_time()
                    opened.run_in_kernel(code)
                    while code is VIEWED and not (Path(folder) / f"round{number + 1}").exists():
                        time.sleep(0.1)  # to ask the kernel or the page would cost them something
                    took[code] = processor_time() - start
                drawn = page.evaluate(f"document.querySelector('{VIEW}').view.drawn") - before
                pictures += drawn
                cost = 1000 * (took[VIEWED] - took[ALONE])
                print(
                    f"round {number + 1}: {drawn} pictures drawn, {cost:.0f} ms of a core for "
                    f"browser and server",
                    flush=True,
                )
            rates = opened.ask_kernel("rates")
            a_second = pictures / opened.ask_kernel("sum(seconds)")
            opened.run_in_kernel(VIEWED)
            clicks = click_times(page)
        finally:
            lab.close()
    for name, values in rates.items():
        print(f"{name:8}", ", ".join(f"{value:.1f}" for value in values), "tok/s")
    pairs = zip(rates["viewed"], rates["alone"], strict=True)
    ratio = statistics.median(viewed / alone for viewed, alone in pairs)
    print(f"with the view {100 * (ratio - 1):+.1f} % throughput, {a_second:.1f} pictures a second")
    print(f"a click is handled in {statistics.median(clicks):.0f} ms (median of {len(clicks)})")


def processor_time() -> float:
    """Seconds that a browser and JupyterLab's server have computed, all threads together."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            browser = any(os.fsencode(name) in command for name in BROWSERS)
            if browser or (b"jupyter" in command and b"ipykernel" not in command):
                for thread in (process / "task").iterdir():
                    total += int((thread / "schedstat").read_text().split()[0])
        except OSError:
            continue  # it ended meanwhile
    return total / 1e9


def click_times(page: Any) -> list[float]:
    """From a click on a box to the kernel's word that it took note, while it decodes, in ms."""
    return page.evaluate(
        f"""async () => {{
            const view = document.querySelector('{VIEW}').view;
            const boxes = Array.from(view.find("breaks").querySelectorAll("input"));
            const box = boxes.find((some) => some.value === "evicted");
            const handled = () => new Promise((done) => {{
                view.setStatus = (status) => {{
                    Object.getPrototypeOf(view).setStatus.call(view, status);
                    if (status.breaks.includes(box.value) === box.checked) done();
                }};
            }});
            const times = [];
            for (let i = 0; i < 16; i++) {{
                const began = performance.now();
                box.click();
                await handled();
                times.push(performance.now() - began);
                await new Promise((done) => setTimeout(done, 200));
            }}
            delete view.setStatus;
            return times;
        }}"""
    )


def run_of(num_blocks: int, batch: int, tokens: int, requests: int) -> Timeline:
    engine = oracle_engine(num_blocks=num_blocks, max_num_seqs=batch, block_size=16)
    for number in range(requests):
        engine.add_request([number % 50, number // 50, 3], greedy(tokens))
    while engine.has_unfinished:
        engine.step()
    return Timeline(engine.log)


def show(browser: Any, timeline: Timeline) -> tuple[Any, float, int]:
    """A page with the run; the milliseconds until it is drawn, and the page's bytes."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    html = replay_page(timeline.document(), "measure", "measure")
    with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False) as file:
        file.write(html)
    page.goto(Path(file.name).as_uri(), wait_until="commit")
    count = len(timeline.frames)
    page.wait_for_function(f"window.view && view.history.length === {count} && view.drawn > 1")
    took = page.evaluate("performance.now()")
    return page, took, len(html)


def frames_a_second(page: Any) -> float:
    """Drawn while the cursor runs through the history, a step a picture."""
    return page.evaluate(
        """async () => {
            const next = () => new Promise((done) => requestAnimationFrame(done));
            view.goTo(1);
            for (let i = 0; i < 10; i++) await next();
            const before = view.drawn, began = performance.now();
            let count = 1;
            while (performance.now() - began < 3000) {
                view.goTo(1 + (count++ % (view.history.length - 1)));
                await next();
            }
            return (view.drawn - before) / ((performance.now() - began) / 1000);
        }"""
    )


def main() -> None:
    """Measure, and print."""
    with open_browser() as browser:
        for num_blocks in (4096, 16_384, 65_536):
            page, _, _ = show(browser, run_of(num_blocks, 32, 60, 32))
            print(f"{num_blocks} blocks: {frames_a_second(page):.0f} pictures a second", flush=True)
            page.close()
        timeline = run_of(4096, 8, 500, 8)
        page, _, size = show(browser, timeline)
        print(f"the page of {len(timeline.frames)} steps at batch 8 has {size / 1000:.0f} KB")
        page.close()
        timeline = run_of(4096, 32, 150, 330)
        events = sum(len(frame.events) for frame in timeline.frames)
        page, took, _ = show(browser, timeline)
        jumps = page.evaluate(
            """() => Array.from({length: 60}, (_, i) => {
                const began = performance.now();
                view.goTo((i * 7919) % view.history.length);
                view.draw();
                return performance.now() - began;
            })"""
        )
        print(
            f"{events} events, {len(timeline.frames)} steps: loaded in {took / 1000:.2f} s, a jump "
            f"{statistics.median(jumps):.0f} ms median, {max(jumps):.0f} ms at most",
            flush=True,
        )
        page.close()
        print("an engine that leaves a core")
        cost_of_the_view(browser, LEAVE_A_CORE + SETUP)
        print("an engine that takes all cores")
        cost_of_the_view(browser, SETUP)


if __name__ == "__main__":
    main()
