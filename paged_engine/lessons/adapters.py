"""What makes a reader's part fit into the real engine before the reader has built all of it.

ContinuousEngine(model, scheduler=without_blocks(MyScheduler(max_num_seqs=4, budget=64)))
ContinuousEngine(model, request=own_request(MyRequest))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError, InvariantError, UnknownRequestError
from paged_engine.protocols import BlockPoolProtocol, SchedulerOutput
from paged_engine.request import Request, RequestStatus, check_servable

NEEDED = ("add", "abort", "schedule", "update")


def without_blocks(scheduler: Any) -> Callable[[EngineConfig, BlockPoolProtocol], WithoutBlocks]:
    """A scheduler that knows no blocks, as something the engine takes.

    Args:
        scheduler: With the methods of notebook 05: `add(request)`, `abort(request_id)`,
            `schedule() -> {request: number of tokens}` and
            `update(scheduled, sampled) -> finished requests`.

    Raises:
        InvalidConfigError: A method is missing.
    """
    missing = [name for name in NEEDED if not callable(getattr(scheduler, name, None))]
    if missing:
        raise InvalidConfigError(
            f"{type(scheduler).__name__} has no {' and no '.join(missing)}; expected the methods "
            f"{', '.join(NEEDED)}"
        )
    return lambda config, pool: WithoutBlocks(scheduler, config, pool)


class WithoutBlocks:
    """Stands between the engine and a scheduler that knows no blocks.

    It reserves at the door what a request can need at most, `prompt + max_tokens`, as engines did
    before paging; so a request that is in can never run out.  Who finds no room waits at the
    door, and those behind wait too.  Notebook 06 measures what that wastes.
    """

    def __init__(self, scheduler: Any, config: EngineConfig, pool: BlockPoolProtocol) -> None:
        assert config.max_servable_tokens is not None
        self.scheduler = scheduler
        self.pool = pool
        self.block_size = config.block_size
        self.max_servable_tokens = config.max_servable_tokens
        self._config = config
        self._door: deque[Request] = deque()
        self._inside: dict[str, Request] = {}

    @property
    def num_at_the_door(self) -> int:
        return len(self._door)

    @property
    def max_num_seqs(self) -> int:
        """The scheduler's own limit, which `engine.set_limits` may change while it runs."""
        return int(getattr(self.scheduler, "max_num_seqs", self._config.max_num_seqs))

    @max_num_seqs.setter
    def max_num_seqs(self, number: int) -> None:
        self.scheduler.max_num_seqs = number

    @property
    def max_num_batched_tokens(self) -> int:
        """As `max_num_seqs`: what the scheduler keeps to, not a copy of it."""
        limit = getattr(self.scheduler, "max_num_batched_tokens", None)
        return int(self._config.max_num_batched_tokens if limit is None else limit)

    @max_num_batched_tokens.setter
    def max_num_batched_tokens(self, number: int) -> None:
        self.scheduler.max_num_batched_tokens = number

    def add(self, request: Request) -> None:
        """Put a request before the door."""
        check_servable(request.num_prompt_tokens, request.max_tokens, self.max_servable_tokens)
        self._door.append(request)

    def abort(self, request_id: str) -> None:
        """End a request wherever it is.

        Raises:
            UnknownRequestError: There is none.
        """
        request = self._inside.get(request_id)
        if request is not None:
            self.scheduler.abort(request_id)
            if not request.is_finished:
                request.set_status(RequestStatus.FINISHED_ABORTED)
            return self._give_up(request)
        for request in self._door:
            if request.request_id == request_id:
                self._door.remove(request)
                return request.set_status(RequestStatus.FINISHED_ABORTED)
        raise UnknownRequestError(f"no unfinished request {request_id!r}")

    def schedule(self) -> SchedulerOutput:
        """Let in who finds room, and ask the scheduler."""
        while self._door and self._reserve(self._door[0]):
            request = self._door.popleft()
            self._inside[request.request_id] = request
            self.scheduler.add(request)
        scheduled = self.scheduler.schedule()
        self._require_possible(scheduled)
        for request in scheduled:
            if request.status is not RequestStatus.RUNNING:
                request.set_status(RequestStatus.RUNNING)
        return SchedulerOutput(dict(scheduled))

    def update(self, output: SchedulerOutput, sampled: Mapping[str, int]) -> list[Request]:
        """Hand over what was computed; who is finished gives its blocks back."""
        before = {request: request.num_tokens for request in output.scheduled}
        self.scheduler.update(dict(output.scheduled), dict(sampled))
        finished = []
        for request, num_tokens in before.items():
            if request.request_id not in self._inside:  # aborted while the batch was in flight
                continue
            if request.request_id in sampled and request.num_tokens != num_tokens + 1:
                raise InvariantError(
                    f"update was told of a new token of {request.request_id!r}, which has "
                    f"{request.num_tokens} tokens and had {num_tokens}; expected one more: does "
                    f"update call append_token for each request in `sampled`?"
                )
            if request.is_finished:
                finished.append(request)
                self._give_up(request)
        return finished

    def _reserve(self, request: Request) -> bool:
        most = request.num_prompt_tokens + request.max_tokens
        blocks = self.pool.allocate(-(-most // self.block_size))
        if blocks is None:
            return False
        request.block_table = blocks
        return True

    def _give_up(self, request: Request) -> None:
        del self._inside[request.request_id]
        self.pool.free(request.block_table)
        request.block_table = []

    def _require_possible(self, scheduled: Any) -> None:
        if not isinstance(scheduled, Mapping):
            raise InvariantError(
                f"schedule returned {scheduled!r}; expected a dict, request to number of tokens"
            )
        given: dict[Request, int] = dict(scheduled)
        for request, num_tokens in given.items():
            if self._inside.get(request.request_id) is not request:
                raise InvariantError(
                    f"schedule returned {request.request_id!r}, which is finished or was never "
                    f"added; does update remove who is finished?"
                )
            left = request.num_tokens - request.num_computed_tokens
            if not 1 <= num_tokens <= left:
                raise InvariantError(
                    f"schedule gave {request.request_id!r} {num_tokens} tokens; expected 1 to "
                    f"{left}, what it knows and has not computed"
                )


def own_request(mine: type) -> type[Request]:
    """A reader's request, as something the engine takes in place of its own.

    The reader's object keeps status, tokens and progress, and decides what may follow what and
    when it ends; the package's fields (blocks, times, parameters) lie beside it.

    Args:
        mine: Called with (request_id, prompt_token_ids, max_tokens, eos_token_ids); its objects
            have `status` (an enum with the names of :class:`RequestStatus`), `token_ids`,
            `num_computed_tokens`, `set_status(status)` and `append_token(token_id)`.
    """

    class OwnRequest(Request):
        """The package's fields around the reader's request, `own`."""

        own: Any

        def __post_init__(self) -> None:
            eos = () if self.params.ignore_eos else self.eos_token_ids
            prompt = list(self.prompt_token_ids)
            self.own = mine(self.request_id, prompt, self.max_tokens, frozenset(eos))
            self.num_prompt_tokens = len(prompt)

        @property
        def status(self) -> RequestStatus:
            return RequestStatus[self.own.status.name]

        @status.setter
        def status(self, status: RequestStatus) -> None:
            if self._is_made:
                self.own.status = type(self.own.status)[status.name]

        @property  # read-only: what is appended goes through append_token
        def token_ids(self) -> list[int]:  # type: ignore[override]
            token_ids: list[int] = self.own.token_ids
            return token_ids

        @property
        def num_computed_tokens(self) -> int:
            return int(self.own.num_computed_tokens)

        @num_computed_tokens.setter
        def num_computed_tokens(self, number: int) -> None:
            if self._is_made:
                self.own.num_computed_tokens = number

        @property
        def num_tokens(self) -> int:
            return len(self.own.token_ids)

        @property
        def _is_made(self) -> bool:
            """The package's constructor sets these fields before there is an `own`."""
            return "own" in self.__dict__

        def set_status(self, status: RequestStatus) -> None:
            self.own.set_status(type(self.own.status)[status.name])

        def append_token(self, token_id: int) -> None:
            self.own.append_token(token_id)

    return OwnRequest
