"""Steps an engine while a page looks on: play, pause, one step, inject, abort, break.

The kernel is never blocked.  Playing is a task that steps the engine and lets go of the event loop
after every step, long enough for messages to come in.  Nothing waits for a page: without one,
`finish` runs the rest at once.

A word from a page costs more than what the page is sent: JupyterLab shows that the kernel was busy,
and fetches another icon for the browser's tab.  So pages keep silent, and when nothing was heard
for long they are asked, with the frames that they are sent anyway.

Newer kernels hand in a page's messages on a thread of their own, while a cell or a step runs, or on
the one that last sent something.  Only the thread of the event loop touches the engine: what needs
it is put in a queue, and done there between two steps.  What does not, as another speed, is done
and confirmed at once; so is a pause, but it is confirmed when the step that runs has ended and its
frame is sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.visualizer.idle_cores import IdleCores

# Each with the frames of all steps since; the page shows them one by one.
MESSAGES_PER_SECOND = 1.5  # where the engine takes all cores; a message takes some 8 ms of one
MOST_MESSAGES_PER_SECOND = 5  # where it leaves some
LET_GO = 6  # times that a step lets go of the event loop: a message takes several to come in
ASK_AFTER = 10.0  # seconds without a word from a page until they are asked for one
MOST_ASKS = 2  # without an answer until playing pauses: after a long step the first comes late
FULL = 0.9  # share of the usable blocks in use at which "full" breaks
MOST_STEPS = 100_000  # that `finish` runs

BREAKS = ("preempted", "evicted", "finished", "full")


class Stepped(Protocol):
    """What the player needs of an engine; `paged_engine.ContinuousEngine` is one."""

    @property
    def log(self) -> Any: ...
    @property
    def pool(self) -> Any: ...
    @property
    def has_unfinished(self) -> bool: ...
    def step(self) -> list[Any]: ...
    def abort(self, request_id: str) -> None: ...
    def resize_pool(self, num_usable: int) -> None: ...


class Player:
    """Steps one engine for all views of it.

    Args:
        engine: What is stepped.
        add_request: Called with (prompt, max_tokens, priority) to inject a request.

    Attributes:
        is_playing: Whether a task steps the engine.
        speed: Steps a second; 0: as fast as it can.
        breaks: At which of `BREAKS` playing pauses.
        error: What the engine raised, in words; empty if nothing.
        stopped_by: Why playing paused, if the reader did not.
        asks: Whether what is sent now asks pages to say that they are there.
        idle_cores: The machine's cores that were idle while it played.
    """

    def __init__(self, engine: Stepped, add_request: Callable[[str, int, int], object]) -> None:
        self.engine = engine
        self.is_playing = False
        self.speed = 0.0
        self.breaks: tuple[str, ...] = ()
        self.error = ""
        self.stopped_by = ""
        self.asks = False
        self.idle_cores = IdleCores()
        self._add_request = add_request
        self._commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._views: weakref.WeakSet[Any] = weakref.WeakSet()
        self._task: asyncio.Task[None] | None = None
        self._pages: dict[str, float] = {}  # when each was last heard of
        self._asked = 0.0  # when pages were last asked whether they are there
        self._unanswered = 0  # how often they were since
        self._shown = 0.0  # when frames were last sent
        self._broke = ""
        self._in_step = False
        self._loop = _running_loop()  # whose thread may touch the engine
        self._thread = threading.get_ident()
        self._stop_listening = engine.log.subscribe(self._look_for_break)

    def attach(self, view: Any) -> None:
        """Tell this view when there is something new to be seen.

        Args:
            view: An object with `show()`, and `show_status()`, which is called on any thread.
        """
        self._views.add(view)

    # ------------------------------------------------------------------ from Python

    def play(self) -> None:
        """Go on stepping, in the background.

        Raises:
            PagedEngineError: No event loop runs here; `finish` needs none.
        """
        if self.is_playing:
            return
        loop = _running_loop()
        if loop is None:
            raise PagedEngineError(
                "play needs a running event loop, as in a notebook; elsewhere call finish()"
            )
        self._loop, self._thread = loop, threading.get_ident()
        self._unanswered = 0
        self.error = self.stopped_by = ""
        self.is_playing = True
        self.idle_cores.begin()
        self._task = loop.create_task(self._run())
        self._show()

    def pause(self) -> None:
        """Stop stepping; the engine keeps its requests."""
        self.is_playing = False
        self._show()

    def step(self) -> None:
        """One step, if there is anything to compute."""
        self.pause()
        self._try_step()
        self._show()

    def finish(self, most_steps: int = MOST_STEPS) -> None:
        """Run everything to its end, now.

        Raises:
            PagedEngineError: It did not end in so many steps.
        """
        self.pause()
        self._obey()
        for _ in range(most_steps):
            if not self.engine.has_unfinished:
                break
            self.engine.step()
        else:
            self._show()
            raise PagedEngineError(
                f"the engine has not ended after {most_steps} steps; give finish more of them"
            )
        self._show()

    @property
    def messages_per_second(self) -> float:
        """How often pages are told what is new while it plays."""
        return MOST_MESSAGES_PER_SECOND if self.idle_cores.count else MESSAGES_PER_SECOND

    def status(self) -> dict[str, Any]:
        """What every page is told."""
        return {
            "playing": self.is_playing or self._in_step,  # a step's frame comes before its end
            "error": self.error or self.stopped_by,
            "breaks": list(self.breaks),
            "speed": self.speed,
        }

    # ------------------------------------------------------------------ from the page

    def receive(self, message: dict[str, Any]) -> None:
        """Take a message of a page; it may come on any thread."""
        page = str(message.get("page", ""))
        self._pages[page] = time.monotonic()
        self._unanswered = 0
        match message:
            case {"cmd": "gone"}:
                self._pages.pop(page, None)
                if not self._pages:
                    self.is_playing = False  # the task shows where it ended
            case {"cmd": "alive" | "ready" | "pick"}:
                pass
            case {"cmd": "pause"}:
                self.is_playing = False
                self._between_steps(self._show)
            case {"cmd": "speed" | "breaks"}:
                self._try(message)
                for view in list(self._views):
                    view.show_status()
            case _:
                self._commands.put(message)
                self._between_steps(self._attend)

    def _between_steps(self, act: Callable[[], None]) -> None:
        """Do it on the thread that steps the engine: now, if this is it, else as soon as can be."""
        loop = self._loop
        if loop is None or loop.is_closed() or threading.get_ident() == self._thread:
            act()
        else:
            loop.call_soon_threadsafe(act)

    def _attend(self) -> None:
        self._obey()
        self._show()

    def _obey(self) -> None:
        """Do what the pages asked for."""
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            self._try(command)

    def _try(self, command: dict[str, Any]) -> None:
        try:
            self._do(command)
        except Exception as error:  # a page must see it: it has no traceback
            self.error = f"{type(error).__name__}: {error}"

    def _do(self, command: dict[str, Any]) -> None:
        match command:
            case {"cmd": "play"}:
                self.play()
            case {"cmd": "step"}:
                self.error = self.stopped_by = ""
                self.is_playing = False
                self._try_step()
            case {"cmd": "end"}:
                self.speed = 0.0
                self.breaks = ()
                self.play()
            case {"cmd": "speed", "value": speed}:
                self.speed = max(0.0, float(speed))
            case {"cmd": "breaks", "value": names}:
                self.breaks = tuple(name for name in BREAKS if name in names)
            case {"cmd": "inject", "prompt": prompt, "max_tokens": most, "priority": priority}:
                self.error = ""
                self._add_request(str(prompt), int(most), int(priority))
            case {"cmd": "abort", "request": request_id}:
                self.engine.abort(str(request_id))
            case {"cmd": "resize", "value": num_usable}:
                self.engine.resize_pool(int(num_usable))
            case _:
                raise PagedEngineError(f"the page asked for {command!r}, which is not known here")

    # ------------------------------------------------------------------ inner workings

    async def _run(self) -> None:
        me = asyncio.current_task()
        while self.is_playing and self._task is me:  # else there was a pause, and another began
            began = time.monotonic()
            if not (self.engine.has_unfinished and self._try_step()):
                self.is_playing = False
            elif self._broke:
                self.stopped_by, self.is_playing = f"paused: {self._broke}", False
            elif self._pages and self._is_due() and self._unanswered >= MOST_ASKS:
                self.stopped_by, self.is_playing = "paused: no page was looking on", False
            if self.is_playing:  # else what is new is shown, and saved, once, behind the loop
                self._show(at_most=self.messages_per_second)
            for _ in range(LET_GO):  # any time asleep would be the engine's
                await asyncio.sleep(0)
            if self.speed:
                await asyncio.sleep(1 / self.speed - (time.monotonic() - began))
        self._show()

    def _try_step(self) -> bool:
        """One step; what the engine raises is kept to be shown."""
        self._broke = ""
        try:
            if self.engine.has_unfinished:
                self._in_step = True
                self.engine.step()
        except Exception as error:
            self.error = f"the step failed and was rolled back: {type(error).__name__}: {error}"
            return False
        finally:
            self._in_step = False
        return True

    def _is_due(self) -> bool:
        """Whether it is long since there was a word from a page, or it was asked for one."""
        last = max([self._asked, *self._pages.values()])
        return self.is_playing and time.monotonic() - last > ASK_AFTER

    def _look_for_break(self, event: ev.Event) -> None:
        if event.kind in self.breaks:
            of = getattr(event, "request_id", None) or f"block {getattr(event, 'block_id', '')}"
            self._broke = f"{of} was {event.kind}"
        elif "full" in self.breaks and isinstance(event, ev.StepEnded):
            usable = getattr(self.engine.pool, "num_usable", 0)
            free = self.engine.pool.num_free
            if usable and usable - free > FULL * usable:
                self._broke = f"{usable - free} of {usable} usable blocks are in use"

    def _show(self, at_most: float | None = None) -> None:
        """Let the views send what is new, but not more often than `at_most` times a second."""
        now = time.monotonic()
        if at_most is not None and self.is_playing and now - self._shown < 1 / at_most:
            return
        self._shown = now
        if self.is_playing:
            self.idle_cores.look()
        self.asks = self._is_due()
        if self.asks:
            self._asked = now
            self._unanswered += 1
        for view in list(self._views):
            view.show()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_players: weakref.WeakValueDictionary[int, Player] = weakref.WeakValueDictionary()


def player_of(engine: Stepped, add_request: Callable[[str, int, int], object]) -> Player:
    """The one player of an engine, however many views it has; it lives as long as they do."""
    player = _players.get(id(engine))
    if player is None or player.engine is not engine:
        player = _players[id(engine)] = Player(engine, add_request)
    return player


def finish_all() -> list[Any]:
    """Run every engine that is looked at to its end, before a notebook with its views is saved.

    Returns:
        The views.
    """
    players = list(_players.values())
    for player in players:
        player.finish()
    return [view for player in players for view in player._views]
