"""The live view of an engine in a notebook, and of a recorded run.

view = EngineView(engine)     # last in a cell: block map, batch, gauges, texts, controls
view.play()                   # or press play
EngineView.replay(log)        # a run from its log alone
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from paged_engine import events as ev
from paged_engine.errors import InvalidConfigError, PagedEngineError
from paged_engine.replay import EngineState, copy_state, reduce
from paged_engine.visualizer.lanes import whole
from paged_engine.visualizer.page import PARTS, replay_page, style_sheet, widget_module
from paged_engine.visualizer.player import Player, Stepped, player_of
from paged_engine.visualizer.retelling import Reducer, Retelling, retell
from paged_engine.visualizer.timeline import Timeline

MOST_SAVED = 200_000  # bytes of a run that a notebook keeps
_MOST_WORDS = 300  # characters of a prompt that are shown


class EngineView(anywidget.AnyWidget):
    """A view of an engine, and the means to play it.

    Several views of one engine show the same and play it together.

    Args:
        engine: A :class:`paged_engine.ContinuousEngine` that records events.
        parts: Which parts to show, of `controls`, `blocks`, `lanes`, `gauges`, `requests`.
        about: A line about the run; None: model, device and pool.
        reducer: Shows what this function makes of the events, in place of
            :func:`paged_engine.replay.reduce`: (state, event) to the state after it.

    Attributes:
        picked_block, picked_request, picked_position: What the reader last picked in the page.

    Raises:
        InvalidConfigError: There is no such part, or the engine records no events.
    """

    _esm = widget_module()
    _css = style_sheet()
    parts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    about = traitlets.Unicode().tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    saved = traitlets.Bytes().tag(sync=True)
    picked_block = traitlets.Int(None, allow_none=True)
    picked_request = traitlets.Unicode(None, allow_none=True)
    picked_position = traitlets.Int(None, allow_none=True)

    def __init__(
        self,
        engine: Stepped | None,
        parts: Collection[str] = PARTS,
        about: str | None = None,
        *,
        reducer: Reducer | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        shown = [parts] if isinstance(parts, str) else list(parts)
        if unknown := sorted(set(shown) - set(PARTS)):
            raise InvalidConfigError(
                f"a view has no part {', '.join(map(repr, unknown))}; expected some of "
                f"{', '.join(PARTS)}"
            )
        self._sent = 0  # frames that the pages have been sent
        self._lock = threading.RLock()  # pages are answered on another thread than it plays on
        self._player = None if engine is None else player_of(engine, partial(_inject, engine))
        if engine is not None:
            about = _about(engine) if about is None else about
        self.timeline = _watch(engine, reducer) if timeline is None else timeline
        super().__init__(parts=shown, about=about or "", live=engine is not None)
        self.on_msg(self._receive)
        if self._player is not None:
            self._player.attach(self)
        self._save()

    @classmethod
    def replay(
        cls,
        log: Iterable[ev.Event] | str | Path,
        parts: Collection[str] = PARTS,
        about: str = "a recorded run",
        *,
        reducer: Reducer | None = None,
    ) -> EngineView:
        """A view of a recorded run, with its own clock and no engine.

        Args:
            log: Its events, all of them, or the path of a file that `EventLog.to_jsonl` wrote.
            parts, about, reducer: See the class.

        Raises:
            PagedEngineError: It is not a whole log.
        """
        return cls(None, parts, about, timeline=read_timeline(log, reducer))

    # ------------------------------------------------------------------ playing

    def play(self) -> None:
        """Step the engine in the background while it has something to compute."""
        self._require_player().play()

    def pause(self) -> None:
        """Stop stepping."""
        self._require_player().pause()

    def step(self) -> None:
        """Compute one step."""
        self._require_player().step()

    def finish(self) -> None:
        """Run everything to its end at once, whether or not a page looks on."""
        self._require_player().finish()

    @property
    def is_playing(self) -> bool:
        return self._player is not None and self._player.is_playing

    # ------------------------------------------------------------------ the run as a file

    def export_html(self, path: str | Path, title: str = "a run of paged_engine") -> None:
        """Write the run so far as one page that plays in any browser, without a network."""
        self.timeline.flush()
        page = replay_page(self.timeline.document(), title, self.about)
        Path(path).write_text(page, encoding="utf-8")

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and a picture for where widgets are not shown: GitHub, an untrusted clone."""
        shown = super()._repr_mimebundle_(**options)
        bundle, *rest = shown if isinstance(shown, tuple) else (shown,)
        if bundle is not None and (picture := self.picture()):
            bundle = {**bundle, "image/png": picture}
        return (bundle, *rest) if isinstance(shown, tuple) else bundle

    def __repr__(self) -> str:
        """No address: notebooks are compared."""
        steps = self.timeline.frames[-1].step if self.timeline.frames else 0
        return f"EngineView({', '.join(self.parts)}; {steps} steps)"

    # ------------------------------------------------------------------ inner workings

    def _require_player(self) -> Player:
        if self._player is None:
            raise InvalidConfigError("this is a recorded run; its page plays it, without Python")
        return self._player

    def _receive(self, _: Any, message: dict[str, Any], __: Any) -> None:
        """A page said something."""
        if message.get("cmd") == "ready":
            self._send_all(message.get("page"))
        elif message.get("cmd") == "pick":
            self.picked_block = message.get("block")
            self.picked_request = message.get("request")
            self.picked_position = message.get("position")
        if self._player is not None:
            self._player.receive(message)

    def show(self) -> None:
        """Send the pages what is new."""
        playing = self.is_playing
        status = self._status()
        with self._lock:
            if not playing:
                self.timeline.flush()
            first = max(self._sent, self.timeline.num_dropped)
            frames = self.timeline.since(first)
            self._sent = first + len(frames)
            message = {"kind": "frames", "first": first, "frames": frames, "status": status}
            if (player := self._player) is not None:
                message |= {"asks": player.asks, "idle": player.idle_cores.count}
                message |= {"every": round(1000 / player.messages_per_second)}
            self.send(message)
        if not playing:
            self._save()

    def show_status(self) -> None:
        """Say whether it plays, and how; on any thread, also while a step runs."""
        self.send({"kind": "status", "status": self._status()})

    def _send_all(self, page: Any) -> None:
        """All of the run, to a page that has just come or that lacks something."""
        with self._lock:
            self.timeline.flush()
            document = self.timeline.document()
            # frames that come meanwhile are sent by the next `show`
            self._sent = document["key"]["first"] + len(document["frames"])
            status = self._status()
            self.send({"kind": "document", "to": page, "document": document, "status": status})

    def picture(self) -> str | None:
        """The lanes so far as a PNG in base64; None where matplotlib is missing or nothing ran."""
        if not any(frame.budget for frame in self.timeline.frames) or self.timeline.num_dropped:
            return None
        try:
            from paged_engine.visualizer.plots import plot_lanes
        except ImportError:
            return None
        file = io.BytesIO()
        plot_lanes([e for frame in self.timeline.frames for e in frame.events]).savefig(
            file, format="png", dpi=100
        )
        return base64.b64encode(file.getvalue()).decode("ascii")

    def _status(self) -> dict[str, Any]:
        return {} if self._player is None else self._player.status()

    def _save(self) -> None:
        """Keep the run where a saved notebook keeps it."""
        self.saved = self.timeline.packed(MOST_SAVED)


def read_timeline(log: Iterable[ev.Event] | str | Path, reducer: Reducer | None = None) -> Timeline:
    """The timeline of a recorded run, as `reducer` understands it.

    Raises:
        PagedEngineError: It is not a whole log, or its events do not fit each other.
    """
    events = whole(ev.EventLog.from_jsonl(log) if isinstance(log, (str, Path)) else log)
    state, step, time = EngineState(), 0, events[0].time
    for number, event in enumerate(events, 1):
        try:
            if event.step < step or event.time < time:
                raise PagedEngineError(f"{event.kind} of step {event.step} comes too late")
            step, time = event.step, event.time
            reduce(state, event)
            if isinstance(event, ev.Freed) and min(b.ref_cnt for b in state.blocks) < 0:
                raise PagedEngineError("a block is given up by nobody who holds it")
        except (PagedEngineError, IndexError) as error:
            raise PagedEngineError(
                f"event {number} does not fit those before it: {error}; expected a log as "
                f"EventLog.to_jsonl writes it, all of it and in order"
            ) from error
    told = events if reducer is None else retell(events, reducer)
    return Timeline(told, most_frames=len(events))


def _watch(engine: Any, reducer: Reducer | None) -> Timeline:
    """A timeline of what happened and of what will."""
    log = engine.log  # raises if there is none
    recorder = getattr(getattr(engine, "core", None), "recorder", None)
    base = copy_state(recorder.base) if recorder is not None and log.num_dropped else None
    tokenizer = getattr(engine, "tokenizer", None)
    if reducer is None:
        timeline = Timeline(log, base, lambda event: _words(event, tokenizer))
        log.subscribe(timeline.add)
        return timeline
    retelling = Retelling(reducer, base)
    told = [e for event in log for e in retelling.tell(event)]
    timeline = Timeline(told, base, lambda event: _words(event, tokenizer))

    def retell_to_timeline(event: ev.Event) -> None:
        for e in retelling.tell(event):
            timeline.add(e)

    log.subscribe(retell_to_timeline)
    return timeline


def _inject(engine: Any, prompt: str, max_tokens: int, priority: int) -> None:
    from paged_engine.request import SamplingParams

    engine.add_request(prompt, SamplingParams(max_tokens=max_tokens), priority=priority)


def _words(event: ev.Queued, tokenizer: Any) -> str:
    """The prompt as text, if it can be had; of a chat what the user asked last."""
    if tokenizer is None:
        return ""
    token_ids = list(event.prompt_token_ids)
    try:
        whole_text = str(tokenizer.decode(token_ids, skip_special_tokens=False))
        text = (
            _last_question(whole_text, tokenizer)
            or str(tokenizer.decode(token_ids, skip_special_tokens=True))
            or whole_text
        )
    except Exception:  # it is shown, nothing more
        return ""
    return text if len(text) <= _MOST_WORDS else f"… {text[-_MOST_WORDS:]}"


def _last_question(prompt: str, tokenizer: Any) -> str:
    """The last message of the user in a prompt that the chat template made; "" in any other.

    What the template writes before and after a message is learnt from a chat that is known.
    """
    first, answer, last = "the first question", "the first answer", "the last question"
    chat = [("user", first), ("assistant", answer), ("user", last)]
    try:
        framed = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in chat],
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception:  # there is no template, or it wants something else
        return ""
    beginning, _, rest = framed.partition(first)
    between, _, closing = rest.partition(answer)[2].partition(last)
    # what stands before every message of the user, the first one and later ones
    ends = (between[start:] for start in range(len(between)))
    opening = next((end for end in ends if beginning.endswith(end)), "").strip()
    closing, prompt = closing.strip(), prompt.rstrip()
    if not opening or not prompt.endswith(closing):
        return ""
    _, found, question = prompt.removesuffix(closing).rpartition(opening)
    return question.strip() if found else ""


def _about(engine: Any) -> str:
    """Model, device and pool in a line."""
    config = engine.config
    runner = engine.core.runner
    name = getattr(runner, "name", type(runner).__name__)
    dtype = str(runner.dtype).removeprefix("torch.")
    return f"{name} · {runner.device} {dtype} · {config.num_blocks} blocks of {config.block_size}"


__all__ = ["EngineView", "read_timeline"]
