"""The line in which requests wait."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import attrgetter

from paged_engine.request import Request


class WaitingQueue:
    """Requests in line, by `queue_key`; O(log n) to join or leave from the front.

    A request that is aborted while it waits leaves a gap, which is skipped when it comes to
    the front, so that a long queue costs a step nothing.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._members: set[Request] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request: Request) -> bool:
        return request in self._members

    def __iter__(self) -> Iterator[Request]:
        return iter(sorted(self._members, key=attrgetter("queue_key")))

    def push(self, request: Request) -> None:
        self._members.add(request)
        heapq.heappush(self._heap, (request.queue_key, request))

    def peek(self) -> Request:
        while self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Request:
        request = self.peek()
        heapq.heappop(self._heap)
        self._members.remove(request)
        return request

    def remove(self, request: Request) -> None:
        self._members.remove(request)
        if len(self._heap) > 2 * len(self._members) + 32:  # more gaps than requests
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
