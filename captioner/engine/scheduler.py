"""Which requests are encoded, decode, wait or are refused: plain Python, tested with integers.

A request counts from admission to its end. Its path: prepared (elsewhere), waiting for an encoder, encoded (elsewhere),
waiting for slots, running in one cache row or in one row per beam. The rows in use are always the first ones: when a
request leaves, the last rows move into its rows.

Both queues are ordered by priority, then by turn, then by arrival. Turns are start-time fair queuing with clients as
flows: a client's first waiting request has the current turn, its second the next one. So a client that sends hundreds
of requests does not delay the only request of another client.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count
from typing import Generic, Protocol, TypeVar

from captioner.errors import ServerBusy

Order = tuple[int, int, int]  # priority, turn, arrival


class Schedulable(Protocol):
    """What the scheduler reads of a request; only the scheduler writes `rows` and `order`."""

    client_id: str
    priority_level: int
    cancelled: bool
    deadline: float
    rows: list[int]
    order: Order

    @property
    def width(self) -> int:
        """Number of slots it needs."""


S = TypeVar("S", bound=Schedulable)


class Scheduler(Generic[S]):
    """Requests run in `slots` rows; `max_waiting` more may wait or be encoding. Not thread-safe: the engine locks."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.rows: list[S] = []  # the request of each row in use
        self.running: list[S] = []
        self._elsewhere: set[S] = set()  # being prepared or encoded
        self._to_encode: list[tuple[Order, S]] = []  # heaps
        self._to_decode: list[tuple[Order, S]] = []
        self._arrivals = count()
        self._turn = 0  # of the request that started to decode last
        self._last_turns: dict[str, int] = {}  # client → the turn of its newest request, if it is still to come

    @property
    def waiting(self) -> int:
        """Number of requests admitted and not yet running."""
        return len(self._elsewhere) + len(self._to_encode) + len(self._to_decode)

    @property
    def idle(self) -> bool:
        """Whether no request runs or could start: all admitted requests are still to be encoded."""
        return not self.running and not self._to_decode

    @property
    def can_join(self) -> bool:
        """Whether a request waits and there is room for it.

        A wide request that waits for room is never overtaken: otherwise it could wait forever.
        """
        return bool(self._to_decode) and len(self.rows) + self._to_decode[0][1].width <= self.slots

    def admit(self, request: S) -> S | None:
        """Count one more request, before any work is done for it. Raises ServerBusy at the limit.

        At the limit, a client with at least two requests fewer than another takes the place of the other's newest
        waiting request. That one is returned and must be refused.
        """
        evicted = None
        if self.waiting + len(self.running) >= self.slots + self.max_waiting:
            evicted = self._evict_for(request.client_id)
            if evicted is None:
                raise ServerBusy(
                    f"all {self.slots} slots are taken and the queue of {self.max_waiting} is full; retry in 1000 ms"
                )
        turn = max(self._turn, self._last_turns.get(request.client_id, -1) + 1)
        self._last_turns[request.client_id] = turn
        request.order = request.priority_level, turn, next(self._arrivals)
        self._elsewhere.add(request)
        return evicted

    def withdraw(self, request: S) -> bool:
        """Uncount a request that failed while it was prepared or encoded; return whether it was still counted."""
        counted = request in self._elsewhere
        self._elsewhere.discard(request)
        return counted

    def enqueue_encode(self, request: S) -> None:
        """Queue a prepared request for an encoder, unless it was dropped meanwhile."""
        if self.withdraw(request):
            heapq.heappush(self._to_encode, (request.order, request))

    def next_to_encode(self) -> S | None:
        """Return the next request whose image is to be encoded, or None."""
        if not self._to_encode:
            return None
        request = heapq.heappop(self._to_encode)[1]
        self._elsewhere.add(request)
        return request

    def enqueue(self, request: S) -> None:
        """Queue a request whose features are ready, unless it was dropped. Its width is at most the number of slots."""
        if self.withdraw(request):
            heapq.heappush(self._to_decode, (request.order, request))

    def drop_expired(self, now: float) -> list[S]:
        """Remove and return the requests not yet running that were cancelled or have passed their deadline."""
        dropped = [each for each in self._not_running() if each.cancelled or now >= each.deadline]
        for request in dropped:
            self._remove(request)
        return dropped

    def join(self) -> S | None:
        """Start the next waiting request in the first free rows; return None without a request or room for it."""
        if not self.can_join:
            return None
        request = heapq.heappop(self._to_decode)[1]
        self._turn = max(self._turn, request.order[1])
        self._last_turns = {client: turn for client, turn in self._last_turns.items() if turn >= self._turn}
        request.rows = list(range(len(self.rows), len(self.rows) + request.width))
        self.rows += [request] * request.width
        self.running.append(request)
        return request

    def leave(self, request: S) -> tuple[list[int], list[int]]:
        """Free the rows of a running request; return which cache rows to copy over which, to keep the rows compact."""
        self.running.remove(request)
        kept = len(self.rows) - len(request.rows)
        targets = [row for row in request.rows if row < kept]
        sources = [row for row in range(kept, len(self.rows)) if self.rows[row] is not request]
        for source, target in zip(sources, targets, strict=True):
            moved = self.rows[source]
            moved.rows[moved.rows.index(source)] = target
            self.rows[target] = moved
        del self.rows[kept:]
        request.rows = []
        return sources, targets

    def _not_running(self) -> list[S]:
        return [*self._elsewhere, *(each for _, each in self._to_encode), *(each for _, each in self._to_decode)]

    def _evict_for(self, client_id: str) -> S | None:
        """Remove and return the newest queued request of the client with the most, if it has two more than this one."""
        counts = Counter(each.client_id for each in (*self._not_running(), *self.running))
        queued = [each for _, each in (*self._to_encode, *self._to_decode)]
        candidates = [each for each in queued if counts[each.client_id] > counts[client_id] + 1]
        evicted = max(candidates, key=lambda each: (counts[each.client_id], each.order), default=None)
        if evicted is not None:
            self._remove(evicted)
        return evicted

    def _remove(self, request: S) -> None:
        if self.withdraw(request):
            return
        for heap in (self._to_encode, self._to_decode):
            kept = [entry for entry in heap if entry[1] is not request]
            if len(kept) < len(heap):
                heap[:] = kept
                heapq.heapify(heap)
