"""Playing an engine in the background: what it obeys, when it stops, and that it never blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from paged_engine import ContinuousEngine
from paged_engine.errors import PagedEngineError
from paged_engine.visualizer import player as player_module
from paged_engine.visualizer.player import Player, player_of
from tests.engine.engine_helpers import greedy, oracle_engine
from tests.helpers.fakes import OracleModel, VirtualClock


class Shown:
    """A view that counts how often it was told."""

    def __init__(self) -> None:
        self.times = self.statuses = 0

    def show(self) -> None:
        self.times += 1

    def show_status(self) -> None:
        self.statuses += 1


def loaded(max_tokens: int = 20, **options: Any) -> ContinuousEngine:
    engine = oracle_engine(**options)
    for number in (1, 2):
        engine.add_request([number, 7, 8], greedy(max_tokens), request_id=f"r{number}")
    return engine


def player_for(engine: ContinuousEngine) -> Player:
    def add(prompt: str, max_tokens: int, priority: int) -> None:
        engine.add_request(list(prompt.encode()), greedy(max_tokens), priority=priority)

    return Player(engine, add)


def steps(engine: ContinuousEngine) -> int:
    return len(engine.log.of_kind("step_ended"))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not happen")


def test_it_plays_to_the_end_without_blocking_and_stops() -> None:
    engine = loaded()
    player, view = player_for(engine), Shown()
    player.attach(view)

    async def main() -> None:
        player.play()
        assert player.is_playing and steps(engine) == 0  # it returns at once
        await until(lambda: not player.is_playing)

    asyncio.run(main())
    assert not engine.has_unfinished
    assert 2 <= view.times < steps(engine) + 3
    assert player.status() == {"playing": False, "error": "", "breaks": [], "speed": 0.0}


def test_pause_takes_effect_at_once_and_a_step_is_one_step() -> None:
    engine = loaded()
    player = player_for(engine)

    async def main() -> None:
        player.play()
        await until(lambda: steps(engine) > 3)
        player.receive({"page": "p", "cmd": "pause"})
        await until(lambda: not player.is_playing)
        await asyncio.sleep(0.01)
        frozen = steps(engine)
        await asyncio.sleep(0.03)
        assert steps(engine) == frozen
        player.receive({"page": "p", "cmd": "step"})
        assert steps(engine) == frozen + 1

    asyncio.run(main())


def test_pages_on_other_threads_are_answered_during_a_step_and_never_touch_the_engine() -> None:
    """As kernels do it that hand in messages on a thread of their own."""
    engine = loaded(max_tokens=60)
    player, view = player_for(engine), Shown()
    player.attach(view)
    inside, go_on = threading.Event(), threading.Event()
    threads: set[int] = set()
    step = engine.step

    def slow_step() -> list[Any]:
        threads.add(threading.get_ident())
        if steps(engine) == 3:
            inside.set()
            assert go_on.wait(10)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]

    def page() -> None:
        assert inside.wait(10)
        player.receive({"page": "p", "cmd": "speed", "value": 900})
        player.receive(
            {"page": "p", "cmd": "inject", "prompt": "!", "max_tokens": 3, "priority": 0}
        )
        assert (player.speed, view.statuses) == (900.0, 1)
        assert len(engine.log.of_kind("queued")) == 2  # it waits for the step to end
        player.receive({"page": "p", "cmd": "pause"})
        assert not player.is_playing and player.status()["playing"] and view.statuses == 1
        player.receive({"page": "p", "cmd": "play"})
        go_on.set()

    async def main() -> None:
        player.play()
        other = threading.Thread(target=page)
        other.start()
        await until(lambda: len(engine.log.of_kind("queued")) == 3)
        await until(lambda: not engine.has_unfinished and not player.is_playing)
        other.join()

    asyncio.run(main())
    assert engine.log.of_kind("queued")[-1].step == 4
    assert threads == {threading.get_ident()}
    assert not player.error


def test_two_presses_in_a_long_pause_do_not_play_twice() -> None:
    engine = loaded(max_tokens=60)
    player = player_for(engine)

    async def main() -> None:
        player.receive({"cmd": "speed", "value": 10})
        player.play()
        await until(lambda: steps(engine) == 1)
        player.receive({"cmd": "pause"})
        player.receive({"cmd": "play"})
        await until(lambda: steps(engine) == 2)
        await asyncio.sleep(0.25)
        player.pause()

    asyncio.run(main())
    assert steps(engine) in (3, 4)


def test_requests_come_and_go_while_it_plays() -> None:
    engine = loaded(max_tokens=60)
    player = player_for(engine)

    async def main() -> None:
        player.play()
        await until(lambda: steps(engine) > 3)
        player.receive({"cmd": "inject", "prompt": "!", "max_tokens": 3, "priority": 0})
        player.receive({"cmd": "abort", "request": "r1"})
        player.receive({"cmd": "resize", "value": 20})
        await until(lambda: not player.is_playing)

    asyncio.run(main())
    injected, (gone,) = engine.log.of_kind("queued")[-1], engine.log.of_kind("aborted")
    assert injected.step > 3 and gone.request_id == "r1"  # type: ignore[attr-defined]
    assert engine.log.of_kind("pool_resized")
    assert not player.error


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("preempted", {"num_blocks": 8}),
        ("evicted", {"num_blocks": 8}),
        ("finished", {}),
        ("full", {"num_blocks": 10}),
    ],
)
def test_it_breaks_where_it_was_told_to(kind: str, options: dict[str, int]) -> None:
    engine = loaded(max_tokens=16, **options)
    player = player_for(engine)

    async def main() -> None:
        player.receive({"cmd": "breaks", "value": [kind, "nonsense"]})
        player.play()
        await until(lambda: not player.is_playing)

    asyncio.run(main())
    assert player.breaks == (kind,)
    assert player.stopped_by.startswith("paused: ")
    if kind == "full":
        assert engine.pool.num_free <= 1 and engine.has_unfinished
    else:
        last = steps(engine)
        assert engine.log.of_kind(kind)[0].step == last


def test_what_the_engine_raises_is_shown_and_playing_can_go_on() -> None:
    model = OracleModel()
    model.fail_at = {5}
    engine = oracle_engine(model)
    engine.add_request([1, 2], greedy(9))
    player = player_for(engine)

    async def main() -> None:
        player.play()
        await until(lambda: not player.is_playing)
        assert "rolled back: RuntimeError: the model failed, as planned" in player.error
        player.play()
        assert not player.error
        await until(lambda: not player.is_playing)

    asyncio.run(main())
    assert not engine.has_unfinished


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({"cmd": "inject", "prompt": "x", "max_tokens": 0, "priority": 0}, "max_tokens is 0"),
        ({"cmd": "abort", "request": "nobody"}, "no unfinished request 'nobody'"),
        ({"cmd": "resize", "value": 0}, "expected 1 to"),
        ({"cmd": "dance"}, "not known here"),
        ({"cmd": "speed", "value": "fast"}, "could not convert"),
    ],
)
def test_what_a_page_asks_for_in_vain_is_said(command: dict[str, Any], said: str) -> None:
    player = player_for(loaded())
    player.receive({"page": "p", **command})
    assert said in player.error
    player.finish()


def test_finish_runs_the_rest_at_once_without_a_loop() -> None:
    engine = loaded()
    player = player_for(engine)
    player.finish()
    assert not engine.has_unfinished
    with pytest.raises(PagedEngineError, match="after 3 steps"):
        slow = loaded()
        player_for(slow).finish(most_steps=3)
    with pytest.raises(PagedEngineError, match="needs a running event loop"):
        player.play()


def test_finish_ends_what_play_began_with_the_same_events() -> None:
    """A notebook that is executed without a page comes to the same end."""
    alone, played = loaded(), loaded()
    player_for(alone).finish()
    player = player_for(played)

    async def main() -> None:
        player.play()
        await until(lambda: steps(played) > 2)
        player.finish()
        await asyncio.sleep(0.01)

    asyncio.run(main())

    def timeless(engine: ContinuousEngine) -> list[Any]:
        return [{**_fields(e), "time": 0} for e in engine.log]

    assert timeless(played) == timeless(alone)


def _fields(event: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {"kind": event.kind, **asdict(event)}


def test_it_pauses_when_the_last_page_is_gone() -> None:
    engine = loaded(max_tokens=60)
    player = player_for(engine)

    async def main() -> None:
        for page in ("a", "b"):
            player.receive({"page": page, "cmd": "ready"})
        player.play()
        await until(lambda: steps(engine) > 2)
        player.receive({"page": "a", "cmd": "gone"})
        assert player.is_playing
        player.receive({"page": "b", "cmd": "gone"})
        assert not player.is_playing

    asyncio.run(main())
    assert engine.has_unfinished


class Page(Shown):
    """A page that answers when it is asked; what it says comes in so many shows later."""

    def __init__(self, player: Player, after: int | None) -> None:
        super().__init__()
        self.player, self.after = player, after
        self.asked: list[int] = []

    def show(self) -> None:
        super().show()
        if self.player.asks:
            self.asked.append(self.times)
        if self.after is not None and self.times - self.after in self.asked:
            self.player.receive({"page": "a", "cmd": "alive"})


def quiet(monkeypatch: pytest.MonkeyPatch, after: int | None, *, each: float) -> Page:
    """What a page saw of an engine whose reader does nothing; by its clock a step takes `each`."""
    clock = VirtualClock()
    monkeypatch.setattr(player_module, "time", SimpleNamespace(monotonic=clock))
    engine = loaded(max_tokens=120)
    player = player_for(engine)
    page = Page(player, after)
    compute = engine.step

    def slow() -> Any:
        clock.now += each
        return compute()

    async def main() -> None:
        player.attach(page)
        player.receive({"page": "a", "cmd": "ready"})
        clock.now += 3600  # a reader may look at a paused engine for as long as it likes
        monkeypatch.setattr(engine, "step", slow)
        player.play()
        await until(lambda: not player.is_playing)

    asyncio.run(main())
    return page


def test_it_pauses_when_pages_fall_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    page = quiet(monkeypatch, None, each=1)
    assert "no page was looking on" in page.player.stopped_by
    assert page.player.engine.has_unfinished
    first, second = page.asked
    assert second - first == 11, "a page has more than ten seconds for its answer"
    before = steps(page.player.engine)

    async def again() -> None:
        page.player.play()
        await until(lambda: not page.player.is_playing)

    asyncio.run(again())
    assert steps(page.player.engine) - before > 20, "whoever plays again is asked again"


def test_a_page_that_answers_when_it_is_asked_keeps_it_playing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = quiet(monkeypatch, 1, each=1)
    assert not page.player.stopped_by and not page.player.engine.has_unfinished
    assert len(page.asked) > 5


def test_an_answer_may_come_a_step_late_however_long_a_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = quiet(monkeypatch, 1, each=30)  # longer than it waits until it asks
    assert not page.player.stopped_by and not page.player.engine.has_unfinished
    assert len(page.asked) > 20


@pytest.mark.parametrize("count, a_second", [(0, 2), (2, 5)])
def test_pages_are_told_more_often_where_cores_are_idle(
    monkeypatch: pytest.MonkeyPatch, count: int, a_second: int
) -> None:
    class Idle:
        def __init__(self) -> None:
            self.count = count
            self.looks: list[str] = []

        def begin(self) -> None:
            self.looks.append("begin")

        def look(self) -> None:
            self.looks.append("look")

    monkeypatch.setattr(player_module, "IdleCores", Idle)
    page = quiet(monkeypatch, 1, each=1 / 16)
    seconds = steps(page.player.engine) / 16
    # not between two steps, but also at the beginning and at the end
    assert 0.7 * a_second < page.times / seconds < 1.2 * a_second + 2 / seconds
    looks = page.player.idle_cores.looks  # type: ignore[attr-defined]
    assert looks == ["begin"] + ["look"] * (page.times - 1), "not when it has ended"


def test_an_engine_has_one_player_for_all_its_views() -> None:
    engine, other = loaded(), loaded()
    first = player_of(engine, lambda *_: None)
    assert player_of(engine, lambda *_: None) is first
    assert player_of(other, lambda *_: None) is not first
