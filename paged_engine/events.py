"""The one event stream: every change of state, typed, in order, with a time.

The visualizer, the metrics, the tests and `verbose` read only this.  The same run gives the
same events, times apart.  `EventLog` keeps them, writes them as JSON lines, and reads them
back; `paged_engine.replay` turns any prefix of them into the engine's exact state.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TextIO

from paged_engine.errors import PagedEngineError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `time` in seconds of the engine's clock, in step `step`."""

    kind: ClassVar[str] = ""
    time: float
    step: int


@dataclass(frozen=True, slots=True)
class EngineStarted(Event):
    """The first event of a log: the sizes that everything after it refers to."""

    kind: ClassVar[str] = "engine_started"
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class StepBegan(Event):
    """A step begins, with `budget` tokens to spend."""

    kind: ClassVar[str] = "step_began"
    budget: int


@dataclass(frozen=True, slots=True)
class StepEnded(Event):
    """`num_tokens` were computed; `failed` means that the step was rolled back."""

    kind: ClassVar[str] = "step_ended"
    num_tokens: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """A sequence was added and waits."""

    kind: ClassVar[str] = "queued"
    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    priority: int
    seed: int
    sample_index: int = 0
    fork_of: str | None = None


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """The request runs; `num_cached_tokens` of its tokens need not be computed."""

    kind: ClassVar[str] = "admitted"
    request_id: str
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scheduled(Event):
    """The request computes `num_tokens` tokens in this step, from position `start` on."""

    kind: ClassVar[str] = "scheduled"
    request_id: str
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Allocated(Event):
    """New blocks at the end of the request's table."""

    kind: ClassVar[str] = "allocated"
    request_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """Blocks that held its tokens already, shared at the start of the request's table."""

    kind: ClassVar[str] = "hit"
    request_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cached(Event):
    """A full block can now be found by its content."""

    kind: ClassVar[str] = "cached"
    block_id: int
    block_hash: int


@dataclass(frozen=True, slots=True)
class Evicted(Event):
    """A block can no longer be found by its content."""

    kind: ClassVar[str] = "evicted"
    block_id: int


@dataclass(frozen=True, slots=True)
class Copied(Event):
    """Copy on write: the content of one block was copied into another."""

    kind: ClassVar[str] = "copied"
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Freed(Event):
    """The request gave up these blocks, the end of its table."""

    kind: ClassVar[str] = "freed"
    request_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preempted(Event):
    """The request lost its blocks and will compute its tokens again."""

    kind: ClassVar[str] = "preempted"
    request_id: str


@dataclass(frozen=True, slots=True)
class Requeued(Event):
    """The step that admitted the request failed; it waits again, as `status`."""

    kind: ClassVar[str] = "requeued"
    request_id: str
    status: str


@dataclass(frozen=True, slots=True)
class Computed(Event):
    """A chunk of the prompt is in the cache, `num_computed_tokens` tokens in all.

    Said where no token came of it; a `Token` says the same of all before it.
    """

    kind: ClassVar[str] = "computed"
    request_id: str
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class Token(Event):
    """The request got a token, so all its tokens before that one are in the cache.

    `text` is what became readable with it.
    """

    kind: ClassVar[str] = "token"
    request_id: str
    token_id: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The request ended by itself; `reason` is the value of its RequestStatus."""

    kind: ClassVar[str] = "finished"
    request_id: str
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Aborted(Event):
    """The request was ended by its user."""

    kind: ClassVar[str] = "aborted"
    request_id: str


@dataclass(frozen=True, slots=True)
class PoolResized(Event):
    """From now on `num_usable` blocks may be in use at once."""

    kind: ClassVar[str] = "pool_resized"
    num_usable: int


@dataclass(frozen=True, slots=True)
class ParametersChanged(Event):
    """The batch limits from the next step on."""

    kind: ClassVar[str] = "parameters_changed"
    max_num_seqs: int
    max_num_batched_tokens: int


EVENT_TYPES: dict[str, type[Event]] = {cls.kind: cls for cls in Event.__subclasses__()}

Listener = Callable[[Event], object]


def to_json(event: Event) -> str:
    """One line of JSON; `from_json` gives back an equal event."""
    return json.dumps({"kind": event.kind, **asdict(event)}, separators=(",", ":"))


def from_json(line: str, number: int = 1) -> Event:
    """The event that `to_json` wrote, in the line of that number.

    Raises:
        PagedEngineError: The line is not an event that this version knows.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        cls = EVENT_TYPES[values.pop("kind")]
        if cls is EngineStarted and values.get("version") != FORMAT_VERSION:
            raise PagedEngineError(
                f"line {number}: this log has format version {values.get('version')}; expected "
                f"{FORMAT_VERSION}"
            )
        wanted = {f.name for f in fields(cls) if f.default is MISSING}
        if missing := wanted - values.keys():
            raise KeyError(*missing)
        # JSON has no tuples
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PagedEngineError(
            f"line {number}: not an event: {line[:120]!r} ({type(error).__name__}: {error}); "
            f"expected a line written by EventLog.to_jsonl"
        ) from error


class EventLog:
    """Events in order, in memory.

    Args:
        max_events: The most to keep.  When there are more, the oldest go, after
            `on_drop` was shown them.
        on_drop: Called with each event that is about to go.
    """

    def __init__(
        self, max_events: int = 1_000_000, on_drop: Callable[[Event], object] | None = None
    ) -> None:
        self.max_events = max_events
        self.num_dropped = 0
        self._events: deque[Event] = deque()
        self._on_drop = on_drop
        self._listeners: list[Listener] = []
        self._untold: deque[Event] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLog) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def append(self, event: Event) -> None:
        if len(self._events) >= self.max_events:
            oldest = self._events.popleft()
            self.num_dropped += 1
            if self._on_drop is not None:
                self._on_drop(oldest)
        self._events.append(event)
        if self._untold is not None:
            self._untold.append(event)
        elif self._listeners:
            self._untold = deque([event])
            self._tell_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, listeners wait; at its end they are told what happened, in order.

        So they find the engine's state whole, and may change it: what that leads to comes
        after what they have not been told yet.
        """
        if self._untold is not None:  # held further out, or by a listener that is being told
            yield
            return
        self._untold = deque()
        try:
            yield
        finally:
            self._tell_all()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; returns what ends that.

        A listener that raises is warned about and removed: it must not harm the requests.
        """
        self._listeners.append(listener)
        return lambda: self._unsubscribe(listener)

    def of_kind(self, *kinds: str) -> list[Event]:
        """The events of these kinds, in order."""
        if unknown := set(kinds) - EVENT_TYPES.keys():
            raise PagedEngineError(
                f"no event is of kind {sorted(unknown)}; expected some of {sorted(EVENT_TYPES)}"
            )
        return [e for e in self._events if e.kind in kinds]

    def to_jsonl(self, file: str | Path | TextIO) -> None:
        """Write one event a line.

        Raises:
            PagedEngineError: Old events were dropped, so the file could not be replayed.
        """
        if self.num_dropped:
            raise PagedEngineError(
                f"{self.num_dropped} events were dropped, so the log no longer begins at the "
                f"start; give the engine a larger max_events"
            )
        if isinstance(file, (str, Path)):
            with open(file, "w", encoding="utf-8") as opened:
                self.to_jsonl(opened)
            return
        file.writelines(to_json(event) + "\n" for event in self._events)

    @classmethod
    def from_jsonl(cls, source: str | Path | Iterable[str]) -> EventLog:
        """Read what `to_jsonl` wrote, from a file's path or from lines.

        Raises:
            PagedEngineError: A line is not an event.
        """
        if isinstance(source, (str, Path)):
            with open(source, encoding="utf-8") as opened:
                return cls.from_jsonl(opened)
        events = [from_json(line, n) for n, line in enumerate(source, 1) if line.strip()]
        log = cls(max_events=max(1, len(events)))
        for event in events:
            log.append(event)
        return log

    def _unsubscribe(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _tell_all(self) -> None:
        try:
            while self._untold:
                event = self._untold.popleft()
                for listener in tuple(self._listeners):
                    self._tell(listener, event)
        finally:
            self._untold = None

    def _tell(self, listener: Listener, event: Event) -> None:
        try:
            listener(event)
        except Exception as error:
            self._unsubscribe(listener)
            message = (
                f"the listener {listener!r} raised {type(error).__name__}: {error} at a "
                f"{event.kind} event and gets no more events; the engine goes on"
            )
            try:
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            except RuntimeWarning:  # warnings are errors here; raised, it would tear a step in two
                print(message, file=sys.stderr)
