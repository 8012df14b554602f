"""Who decodes, who waits, who is refused: plain Python, tested with integers.

A request holds a place from admission to its end. It is first encoded (elsewhere), then waits by priority and arrival
for slots, then runs: in one row of the cache, or in as many as it has beams. The rows in use are always the first
ones: when a request leaves, the last rows take its rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Generic, Protocol, TypeVar

from captioner.errors import ServerBusy


class Schedulable(Protocol):
    """What the scheduler looks at; `rows` is its own to write."""

    priority_level: int
    cancelled: bool
    deadline: float
    rows: list[int]

    @property
    def width(self) -> int:
        """Slots it takes."""


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True)
class Move:
    """Cache row `source` is to be copied over row `target`."""

    source: int
    target: int


class Scheduler(Generic[S]):
    """Requests run in `slots` rows, `max_waiting` more may wait or be encoding. Not thread-safe: the engine locks."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.rows: list[S] = []  # who is in each row in use
        self.running: list[S] = []
        self._waiting: list[tuple[int, int, S]] = []
        self._encoding = 0
        self._arrival = count()

    @property
    def waiting(self) -> int:
        """Requests admitted and not yet running."""
        return self._encoding + len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing could: whoever has a place is still being encoded."""
        return not self.running and not self._waiting

    def admit(self) -> None:
        """Takes a place for a request, before anything is paid for it; ServerBusy when there is none."""
        places = self.slots + self.max_waiting
        if self.waiting + len(self.running) >= places:
            raise ServerBusy(
                f"all {self.slots} slots and {self.max_waiting} waiting places are taken; retry in 1000 ms"
            )
        self._encoding += 1

    def withdraw(self) -> None:
        """Gives back the place of a request that failed or left before it could wait."""
        self._encoding -= 1

    def enqueue(self, sequence: S) -> None:
        """An admitted request, no wider than all slots, has its features and waits."""
        self._encoding -= 1
        heapq.heappush(self._waiting, (sequence.priority_level, next(self._arrival), sequence))

    def dropped(self, now: float) -> list[S]:
        """Removes and returns waiting requests that were cancelled or have passed their deadline."""
        gone = [entry[2] for entry in self._waiting if entry[2].cancelled or now >= entry[2].deadline]
        if gone:
            self._waiting = [entry for entry in self._waiting if entry[2] not in gone]
            heapq.heapify(self._waiting)
        return gone

    def join(self) -> S | None:
        """The next waiting request, now running in the first free rows; None without a request or room for it.

        Nobody overtakes a wide one that waits for room: it would wait for ever.
        """
        if not self._waiting or len(self.rows) + self._waiting[0][2].width > self.slots:
            return None
        sequence = heapq.heappop(self._waiting)[2]
        sequence.rows = list(range(len(self.rows), len(self.rows) + sequence.width))
        self.rows += [sequence] * sequence.width
        self.running.append(sequence)
        return sequence

    def leave(self, sequence: S) -> list[Move]:
        """Frees the rows of a running request, and says which rows must move to keep those in use together."""
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
        return [Move(source, target) for source, target in zip(sources, targets, strict=True)]
