"""Who decodes, who waits, who is refused: plain Python, tested with integers.

A request holds a place from admission to its end. It is first encoded (elsewhere), then waits by priority and arrival
for a slot, then runs. Running requests are always the first rows of the cache: when one leaves, the last takes its row.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Generic, Protocol, TypeVar

from captioner.errors import ServerBusy


class Schedulable(Protocol):
    """What the scheduler looks at."""

    priority_level: int
    cancelled: bool
    deadline: float


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True)
class Move:
    """Cache row `source` is to be copied over row `target`."""

    source: int
    target: int


class Scheduler(Generic[S]):
    """`slots` requests run, `max_waiting` more may be encoding or waiting. Not thread-safe; the engine holds a lock."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.running: list[S] = []  # by cache row
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
        """An admitted request has its features and waits for a slot."""
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
        """The next waiting request, now running in row `len(running) − 1`; None without a free slot or request."""
        if len(self.running) == self.slots or not self._waiting:
            return None
        sequence = heapq.heappop(self._waiting)[2]
        self.running.append(sequence)
        return sequence

    def leave(self, sequence: S) -> Move | None:
        """Frees the row of a running request, and says which row must move to keep the running ones together."""
        row = self.running.index(sequence)
        last = self.running.pop()
        if last is sequence:
            return None
        self.running[row] = last
        return Move(len(self.running), row)
