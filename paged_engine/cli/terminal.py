"""What is said beside the results: errors, notes, progress and events, all on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from paged_engine.errors import PagedEngineError

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.events import Event
    from paged_engine.request import RequestOutput


class CommandError(PagedEngineError):
    """What was asked of a command cannot be done; the message is all that the user needs."""


def note(message: str) -> None:
    """One line, whatever the message was made of."""
    print(f"paged-engine: {' '.join(message.split())}", file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """The line for an error.  Even stderr may be gone, and then there is nobody to tell."""
    with suppress(OSError):
        note(message)


def shows_progress(options: argparse.Namespace) -> bool:
    """Whether long work is to say how far it is: to a person who looks on, or who asked."""
    return not options.no_progress and (options.verbose or sys.stderr.isatty())


def follow_events(engine: ContinuousEngine) -> None:
    """Print what happens beside the results and not into them."""
    from paged_engine.console import event_printer

    printer = event_printer()

    def listen(event: Event) -> None:
        with redirect_stdout(sys.stderr):
            printer(event)

    engine.log.subscribe(listen)


class RequestBar:
    """How many requests are done, and how many tokens they got, as a bar on a terminal.

    The events of --verbose tell more, so there is no bar beside them.
    """

    def __init__(self, total: int, options: argparse.Namespace) -> None:
        from tqdm import tqdm

        hidden = options.verbose or not shows_progress(options)
        self._bar = tqdm(total=total, unit="request", leave=False, disable=hidden)
        self._num_tokens = 0

    def update(self, outputs: Iterable[RequestOutput]) -> None:
        """Count what a step yielded."""
        for output in outputs:
            self._num_tokens += sum(len(c.new_token_ids) for c in output.completions)
            self._bar.update(output.finished)
        self._bar.set_postfix_str(f"{self._num_tokens} tokens")

    def out_of_the_way(self) -> AbstractContextManager[Any]:
        """While something else is printed, which may be on the same terminal."""
        way: AbstractContextManager[Any] = self._bar.external_write_mode()
        return way

    def __enter__(self) -> RequestBar:
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()
