"""A run as the page sees it: a key frame to begin with, and what each step changed.

    timeline = Timeline(log)               all of a recorded log
    timeline = Timeline(); log.subscribe(timeline.add)   as it comes

A frame is one step with everything since the step before, in operations that stand for events:
short lists of plain values, which go to the page as JSON.  The page applies them (web/state.js) as
`replay.reduce` applies events here; a test holds the two against each other at every step.
A request goes by its number, in order of arrival, which also decides its colour.
"""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from paged_engine import events as ev
from paged_engine.errors import PagedEngineError
from paged_engine.replay import EngineState, copy_state, reduce

Operation = list[Any]
Describe = Callable[[ev.Queued], str]

MOST_FRAMES = 20_000


@dataclass(slots=True)
class Frame:
    """One step, or what happened since the last one.

    Attributes:
        step: Its number.
        time: When it ended, in seconds since the run began.
        budget: The tokens it could spend; 0 if no step began in it.
        failed: Whether it was rolled back.
        operations: In order; see `_operation`.
        events: What they stand for.
    """

    step: int
    time: float = 0.0
    budget: int = 0
    failed: bool = False
    operations: list[Operation] = field(default_factory=list)
    events: list[ev.Event] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "s": self.step,
            "t": round(self.time, 4),
            "b": self.budget,
            "f": int(self.failed),
            "o": self.operations,
        }


class Timeline:
    """Frames of a run, the oldest folded into the key frame when there are too many.

    It can be asked for its document on another thread than that which adds events.

    Args:
        events: What happened so far, from the start of the run.
        base: The state before those events, where older ones are gone.
        describe: What is said of a request when it comes, its prompt for example.
        most_frames: The most to keep.

    Attributes:
        frames: Those that are complete.
        num_dropped: How many were folded into the key frame.
    """

    def __init__(
        self,
        events: Iterable[ev.Event] = (),
        base: EngineState | None = None,
        describe: Describe | None = None,
        most_frames: int = MOST_FRAMES,
    ) -> None:
        self.frames: deque[Frame] = deque()
        self.num_dropped = 0
        self._base = EngineState() if base is None else base
        self._numbers = {name: i for i, name in enumerate(self._base.requests)}
        self._words: dict[str, str] = dict.fromkeys(self._numbers, "")
        self._texts: dict[str, str] = dict.fromkeys(self._numbers, "")
        self._describe = describe
        self._most_frames = most_frames
        self._start: float | None = None
        self._open = Frame(0)
        self._in_step = False
        self._lock = threading.RLock()
        for event in events:
            self.add(event)
        self._in_step = False  # a recorded log may end in one
        self.flush()

    def __len__(self) -> int:
        """How many frames there were, the folded ones included."""
        return self.num_dropped + len(self.frames)

    def add(self, event: ev.Event) -> None:
        """Take in the next event."""
        with self._lock:
            self._add(event)

    def _add(self, event: ev.Event) -> None:
        if self._start is None:
            self._start = event.time
        frame = self._open
        frame.events.append(event)
        frame.step, frame.time = event.step, event.time - self._start
        if isinstance(event, ev.Queued):
            self._numbers[event.request_id] = len(self._numbers)
            self._words[event.request_id] = "" if self._describe is None else self._describe(event)
        if isinstance(event, ev.StepBegan):
            frame.budget = event.budget
            self._in_step = True
        elif isinstance(event, ev.StepEnded):
            frame.failed = event.failed
            self._in_step = False
            self._close()
        else:
            frame.operations.append(self._operation(event))

    def flush(self) -> None:
        """Make a frame of what happened since the last step, if anything did.

        What belongs to a step that has not ended stays for that step's frame.
        """
        with self._lock:
            if self._open.events and not self._in_step:
                self._close()

    def since(self, number: int) -> list[dict[str, Any]]:
        """The complete frames from that one on, for JSON.

        Raises:
            PagedEngineError: It is folded already.
        """
        if number < self.num_dropped:
            raise PagedEngineError(
                f"frame {number} is gone; expected {self.num_dropped} or later, or a key frame"
            )
        first = number - self.num_dropped
        return [self.frames[i].plain() for i in range(first, len(self.frames))]

    def key_frame(self) -> dict[str, Any]:
        """The state before the first frame that is kept, for JSON."""
        state = self._base
        return {
            "first": self.num_dropped,
            "num_blocks": len(state.blocks),
            "block_size": state.block_size,
            "num_usable": state.num_usable,
            "max_num_seqs": state.max_num_seqs,
            "budget": state.max_num_batched_tokens,
            "hashes": [
                [number, _short(block.block_hash)]
                for number, block in enumerate(state.blocks)
                if block.block_hash is not None
            ],
            "requests": [
                {
                    "number": self._numbers[name],
                    "id": name,
                    "words": self._words[name],
                    "prompt": len(request.prompt_token_ids),
                    "status": request.status,
                    "computed": request.num_computed_tokens,
                    "tokens": request.output_token_ids,
                    "text": self._texts[name],
                    "table": request.block_table,
                }
                for name, request in state.requests.items()
            ],
        }

    def document(self) -> dict[str, Any]:
        """Key frame and frames, enough to show the run without Python."""
        with self._lock:
            return {"key": self.key_frame(), "frames": self.since(self.num_dropped)}

    def packed(self, most_bytes: int) -> bytes:
        """The document, packed; of a long run the end.

        Args:
            most_bytes: The oldest frames are folded until it takes no more.
        """
        packed = pack(self.document())
        if len(packed) <= most_bytes or not self.frames:
            return packed
        shorter = self._copy()
        for _ in range(max(1, len(self.frames) // 4)):
            shorter._fold()
        return shorter.packed(most_bytes)

    # ------------------------------------------------------------------ inner workings

    def _close(self) -> None:
        self.frames.append(self._open)
        self._open = Frame(self._open.step)
        while len(self.frames) > self._most_frames:
            self._fold()

    def _fold(self) -> None:
        """Take the oldest frame into the key frame."""
        for event in self.frames.popleft().events:
            reduce(self._base, event)
            if isinstance(event, (ev.Token, ev.Finished)):
                self._texts[event.request_id] = self._texts.get(event.request_id, "") + event.text
            elif isinstance(event, ev.Queued):
                self._texts[event.request_id] = ""
        self.num_dropped += 1

    def _copy(self) -> Timeline:
        """One whose frames can be folded without touching these."""
        copy = Timeline(most_frames=self._most_frames)
        copy.frames = deque(self.frames)
        copy.num_dropped = self.num_dropped
        copy._base = copy_state(self._base)
        copy._numbers, copy._words = self._numbers, self._words
        copy._texts = dict(self._texts)
        return copy

    def _operation(self, event: ev.Event) -> Operation:
        """What the page is told.  The first value names it, as in web/state.js."""
        number = self._numbers.get(getattr(event, "request_id", ""), -1)
        match event:
            case ev.Token():
                return ["k", number, event.token_id, event.text]
            case ev.Scheduled():
                return ["d", number, event.start, event.num_tokens]
            case ev.Computed():
                return ["c", number, event.num_computed_tokens]
            case ev.Allocated():
                return ["a", number, *event.block_ids]
            case ev.Hit():
                return ["i", number, *event.block_ids]
            case ev.Freed():
                return ["f", number, *event.block_ids]
            case ev.Cached():
                return ["h", event.block_id, _short(event.block_hash)]
            case ev.Evicted():
                return ["e", event.block_id]
            case ev.Copied():
                return ["x", event.source, event.target]
            case ev.Queued():
                words = self._words[event.request_id]
                prompt = len(event.prompt_token_ids)
                time = round(event.time - (self._start or 0.0), 4)
                return ["q", number, event.request_id, prompt, event.max_tokens, words, time]
            case ev.Admitted():
                return ["r", number, event.num_cached_tokens]
            case ev.Preempted():
                return ["w", number, "preempted"]
            case ev.Requeued():
                return ["w", number, event.status]
            case ev.Finished():
                return ["z", number, event.reason, event.text]
            case ev.Aborted():
                return ["z", number, "abort", ""]
            case ev.PoolResized():
                return ["u", event.num_usable]
            case ev.ParametersChanged():
                return ["p", event.max_num_seqs, event.max_num_batched_tokens]
            case ev.EngineStarted():
                sizes = [event.num_blocks, event.block_size]
                return ["n", *sizes, event.max_num_seqs, event.max_num_batched_tokens]
            case _:
                raise PagedEngineError(f"no operation for {event!r}; teach Timeline this event")


def pack(document: dict[str, Any]) -> bytes:
    """A document in few bytes, which the page unpacks by itself."""
    text = json.dumps(document, separators=(",", ":"))
    return zlib.compress(text.encode())  # its best takes five times as long, for a fiftieth less


def pack_text(document: dict[str, Any]) -> str:
    """The same as text, for a page of its own."""
    return base64.b64encode(pack(document)).decode("ascii")


def _short(block_hash: int | None) -> str | None:
    """The last eight hexadecimal digits: numbers in a page have no 64 bits."""
    return None if block_hash is None else f"{block_hash & 0xFFFFFFFF:08x}"
