"""Which requests decode, wait or are refused: plain Python, tested with integers.

A request counts from admission to its end. It is first encoded (elsewhere), then waits for slots by priority and
arrival, then runs in one cache row, or in one row per beam. The rows in use are always the first ones: when a request
leaves, the last rows move into its rows.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, Protocol, TypeVar

from captioner.errors import ServerBusy


class Schedulable(Protocol):
    """What the scheduler reads of a request; only the scheduler writes `rows`."""

    priority_level: int
    cancelled: bool
    deadline: float
    rows: list[int]

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
        self._waiting: list[tuple[int, int, S]] = []
        self._encoding = 0
        self._arrival = count()

    @property
    def waiting(self) -> int:
        """Number of requests admitted and not yet running."""
        return self._encoding + len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no request runs or could start: all admitted requests are still being encoded."""
        return not self.running and not self._waiting

    def admit(self) -> None:
        """Count one more request, before any work is done for it. Raises ServerBusy at the limit."""
        if self.waiting + len(self.running) >= self.slots + self.max_waiting:
            raise ServerBusy(
                f"all {self.slots} slots are taken and the queue of {self.max_waiting} is full; retry in 1000 ms"
            )
        self._encoding += 1

    def withdraw(self) -> None:
        """Uncount an admitted request that failed or was cancelled before it was enqueued."""
        self._encoding -= 1

    def enqueue(self, sequence: S) -> None:
        """Queue an admitted request whose features are ready. Its width is at most the number of slots."""
        self._encoding -= 1
        heapq.heappush(self._waiting, (sequence.priority_level, next(self._arrival), sequence))

    def drop_expired(self, now: float) -> list[S]:
        """Remove and return the waiting requests that were cancelled or have passed their deadline."""
        dropped = [entry[2] for entry in self._waiting if entry[2].cancelled or now >= entry[2].deadline]
        if dropped:
            self._waiting = [entry for entry in self._waiting if entry[2] not in dropped]
            heapq.heapify(self._waiting)
        return dropped

    def join(self) -> S | None:
        """Start the next waiting request in the first free rows; return None without a request or room for it.

        A wide request that waits for room is never overtaken: otherwise it could wait forever.
        """
        if not self._waiting or len(self.rows) + self._waiting[0][2].width > self.slots:
            return None
        sequence = heapq.heappop(self._waiting)[2]
        sequence.rows = list(range(len(self.rows), len(self.rows) + sequence.width))
        self.rows += [sequence] * sequence.width
        self.running.append(sequence)
        return sequence

    def leave(self, sequence: S) -> tuple[list[int], list[int]]:
        """Free the rows of a running request; return which cache rows to copy over which, to keep the rows compact."""
        self.running.remove(sequence)
        kept = len(self.rows) - len(sequence.rows)
        targets = [row for row in sequence.rows if row < kept]
        sources = [row for row in range(kept, len(self.rows)) if self.rows[row] is not sequence]
        for source, target in zip(sources, targets, strict=True):
            moved = self.rows[source]
            moved.rows[moved.rows.index(source)] = target
            self.rows[target] = moved
        del self.rows[kept:]
        sequence.rows = []
        return sources, targets
