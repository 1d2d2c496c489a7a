"""From what a user asks for to sequences that can be scheduled, checked before any is in line."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from paged_engine.detokenizer import Tokenizer
from paged_engine.engine_core import EngineCore
from paged_engine.errors import InvalidRequestError
from paged_engine.outputs import UserRequest
from paged_engine.prompts import to_token_ids
from paged_engine.request import DEFAULT_MAX_TOKENS, Request, SamplingParams, check_servable


class Intake:
    """Makes a :class:`UserRequest` of a prompt and its parameters.

    Args:
        tokenizer: One of transformers, or None.
        core: Whose model and limits count.
        is_taken: Whether a request id is in use.
        request: What a sequence is kept in.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        core: EngineCore,
        is_taken: Callable[[str], bool],
        request: type[Request] = Request,
    ) -> None:
        self._tokenizer = tokenizer
        self._core = core
        self._is_taken = is_taken
        self._request = request
        self._seeds = random.Random(core.config.seed)
        self._num_named = 0

    def prepare(
        self,
        prompt: Any,
        params: Any = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> UserRequest:
        """Check everything, and change nothing but the next name and seed.

        Raises:
            InvalidRequestError: It could never be served.
        """
        params = self._checked(params)
        if request_id is not None and not isinstance(request_id, str):
            raise InvalidRequestError(f"request_id is {request_id!r}; expected a str, or None")
        n = 1 if params is None else params.n
        if request_id is not None and self._is_any_taken(request_id, n):
            raise InvalidRequestError(
                f"a request {request_id!r} is already being served; use another id"
            )
        if not isinstance(priority, int):
            raise InvalidRequestError(f"priority is {priority!r}; expected a whole number")
        token_ids = to_token_ids(prompt, self._tokenizer, self._core.runner.vocab_size)
        limit = self._max_servable_tokens
        room = max(1, limit - len(token_ids))
        if params is None:  # nothing was asked for, so what fits is right
            params = SamplingParams(max_tokens=min(room, DEFAULT_MAX_TOKENS))
        max_tokens = params.max_tokens or room
        check_servable(len(token_ids), max_tokens, limit)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        name = self._new_name(params.n) if request_id is None else request_id
        requests: list[Request] = []
        for index in range(params.n):
            requests.append(
                self._request(
                    _sample_name(name, index, params.n),
                    token_ids,
                    params,
                    max_tokens=max_tokens,
                    eos_token_ids=self._core.runner.eos_token_ids,
                    seed=seed,
                    priority=priority,
                    sample_index=index,
                    fork_of=requests[0] if requests else None,
                    arrival_time=self._core.clock(),
                )
            )
        return UserRequest(name, requests, self._tokenizer)

    def _checked(self, params: Any) -> SamplingParams | None:
        if params is None:
            return None
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(
                f"params is of type {type(params).__name__}; expected SamplingParams"
            )
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError(
                "stop strings need a tokenizer; give the engine one or use stop_token_ids"
            )
        return params

    @property
    def _max_servable_tokens(self) -> int:
        """The scheduler's limit, which a smaller pool lowers; else the configuration's."""
        configured = self._core.config.max_servable_tokens
        assert configured is not None
        return int(getattr(self._core.scheduler, "max_servable_tokens", configured))

    def _is_any_taken(self, name: str, n: int) -> bool:
        samples = (_sample_name(name, index, n) for index in range(n))
        return self._is_taken(name) or any(self._is_taken(sample) for sample in samples)

    def _new_name(self, n: int) -> str:
        while True:
            name = f"request-{self._num_named}"
            self._num_named += 1
            if not self._is_any_taken(name, n):
                return name


def _sample_name(name: str, index: int, n: int) -> str:
    return name if n == 1 else f"{name}#{index}"


def one_each(params: Any, number: int) -> list[SamplingParams | None]:
    """The parameters of each of `number` prompts.

    Raises:
        InvalidRequestError: There are neither one nor as many as prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params] * number
    if not isinstance(params, Sequence) or len(params) != number:
        given = f"{len(params)} of them" if isinstance(params, Sequence) else repr(params)
        raise InvalidRequestError(
            f"params is {given} for {number} prompts; expected one SamplingParams, or one each"
        )
    return list(params)
