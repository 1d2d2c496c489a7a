"""Classes that grow over cells, and what the package adds to them in the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def add_to_class(owner: type) -> Callable[[Function], Function]:
    """Make a function a method of a class that exists already (the idea is d2l's).

    @add_to_class(Scheduler)
    def schedule(self): ...
    """
    if not isinstance(owner, type):
        raise TypeError(f"add_to_class got {owner!r}; expected a class")

    def add(function: Function) -> Function:
        setattr(owner, function.__name__, function)
        return function

    return add


def show_diff(mine: type, package: type) -> None:
    """Print what the package's class has that the reader's has not, as it is now."""
    own, theirs = _methods(mine), _methods(package)
    both = [name for name in theirs if name in own]
    print(f"Both have: {', '.join(both) or 'nothing by the same name'}.")
    print(f"paged_engine's {package.__name__} adds:")
    added = {name: doc for name, doc in theirs.items() if name not in own}
    width = max(map(len, added), default=0)
    for name, doc in added.items():
        print(f"  {name:{width}}  {doc}".rstrip())


def _methods(owner: type) -> dict[str, str]:
    """Public methods and properties, with the first sentence of what they say of themselves."""
    found = {}
    for base in reversed(owner.__mro__[:-1]):
        for name, value in vars(base).items():
            is_method = inspect.isfunction(value) or isinstance(value, (property, classmethod))
            if is_method and not name.startswith("_"):
                doc = inspect.getdoc(value) or ""
                found[name] = doc.splitlines()[0] if doc else ""
    return found
