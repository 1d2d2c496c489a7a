"""Every error the package raises on purpose.

Each message says what was wrong, what was expected and what to do about it.
All of them derive from :class:`PagedEngineError`, and each also derives from
the built-in that a caller who has never heard of this package would catch.
"""

from __future__ import annotations


class PagedEngineError(Exception):
    """Base of every deliberate error of this package."""


class InvalidConfigError(PagedEngineError, ValueError):
    """A configuration whose values are wrong or do not fit together."""


class InvalidRequestError(PagedEngineError, ValueError):
    """A request that can never be served: bad parameters, bad tokens, or too long."""


class UnknownRequestError(PagedEngineError, LookupError):
    """A request id that this engine or scheduler has never been given."""


class IllegalTransitionError(PagedEngineError, RuntimeError):
    """A request was moved to a status that its present status does not lead to."""


class BlockPoolError(PagedEngineError, RuntimeError):
    """A block was freed twice, released by a stranger, or otherwise misused."""


class InvariantError(PagedEngineError, AssertionError):
    """Two parts of the engine disagree about the state they share."""


class UnsupportedModelError(PagedEngineError, ValueError):
    """A model that the engine cannot serve token for token, with the reason."""


class ModelNotFoundError(PagedEngineError, OSError):
    """A model that could not be found, fetched, verified or read."""


class KernelsUnavailableError(PagedEngineError, RuntimeError):
    """The C++ kernels cannot be compiled or loaded here, with the reason."""
