"""Bug hunts: a fault in the real package, for a while, and a question who did it.

    suspects("05")                 what it may be
    with bug("05"):                in here the package has the fault
        ...
    accuse("05", None)             your answer in place of None

The hunts themselves are in `lessons/hunts`, a module a notebook.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from paged_engine.errors import PagedEngineError
from paged_engine.lessons.exercises import tell


@dataclass(frozen=True)
class Hunt:
    """One fault and the question about it.

    Attributes:
        name: The notebook, as "05"; a second one and a third in it are "09b" and "09c".
        inject: Inside the context that it gives, the package has the fault.
        suspects: Letter to what may be the cause.
        guilty: The letter of the true one.
        reasons: For each letter why it is, or is not.
        source: Where an engine had this defect, if one had.
    """

    name: str
    inject: Callable[[], AbstractContextManager[None]]
    suspects: dict[str, str]
    guilty: str
    reasons: dict[str, str]
    source: str = ""


_known: dict[str, Hunt] = {}


def hunt(new: Hunt) -> Hunt:
    """Make a hunt known.

    Raises:
        PagedEngineError: A suspect has no reason, or the guilty is none of them.
    """
    if set(new.reasons) != set(new.suspects) or new.guilty not in new.suspects:
        raise PagedEngineError(f"hunt {new.name}: each suspect needs a reason, and one is guilty")
    _known[new.name] = new
    return new


def find_hunt(name: str) -> Hunt:
    """The hunt of a notebook.

    Raises:
        PagedEngineError: There is none.
    """
    number = str(name).rstrip("bc")
    module = f"{__package__}.hunts.nb{number}"
    if name not in _known and number.isdigit() and importlib.util.find_spec(module):
        importlib.import_module(module)
    if name not in _known:
        raise PagedEngineError(f"there is no bug hunt {name!r}; expected a notebook's, as in '05'")
    return _known[name]


def bug(name: str) -> AbstractContextManager[None]:
    """Inside, the package has the fault of that hunt; afterwards it is as before."""
    return find_hunt(name).inject()


def suspects(name: str) -> None:
    """Print what the cause may be."""
    for letter, words in find_hunt(name).suspects.items():
        print(f"{letter}. {words}")


def accuse(name: str, letter: str | None) -> None:
    """Say whether this is the cause, and why or why not."""
    found = find_hunt(name)
    if letter is None:
        return tell(f"{name}.hunt", "not attempted", f"{name} bug hunt not attempted yet")
    given = str(letter).strip().upper()
    if given not in found.suspects:
        known = ", ".join(found.suspects)
        return tell(
            f"{name}.hunt", "not yet", f"{name} bug hunt: expected one of {known}, got {letter!r}"
        )
    if given != found.guilty:
        return tell(
            f"{name}.hunt", "not yet", f"{name} bug hunt: not {given}. {found.reasons[given]}"
        )
    source = f" ({found.source})" if found.source else ""
    return tell(
        f"{name}.hunt", "passed", f"{name} bug hunt solved: {given}. {found.reasons[given]}{source}"
    )


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `owner.name` is `value`: with this most faults are injected."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
