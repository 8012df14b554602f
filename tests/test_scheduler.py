"""The scheduler's promises, with integers for requests: any order of events, and no torch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from captioner.engine.scheduler import Move, Scheduler
from captioner.errors import ServerBusy

FAR = float("inf")


@dataclass(eq=False)
class Request:
    number: int
    priority_level: int = 2
    cancelled: bool = False
    deadline: float = FAR


class Schedules(RuleBasedStateMachine):
    """Drives a scheduler and a plain list of what it should do; `rows` is the cache, moved as the scheduler says."""

    @initialize(slots=st.integers(1, 4), max_waiting=st.integers(0, 5))
    def begin(self, slots: int, max_waiting: int) -> None:
        self.scheduler: Scheduler[Request] = Scheduler(slots, max_waiting)
        self.encoding = 0
        self.queue: list[Request] = []
        self.rows: list[Request | None] = [None] * slots
        self.arrived = 0
        self.now = 0

    @property
    def held(self) -> int:
        return self.encoding + len(self.queue) + len(self.scheduler.running)

    @rule()
    def admit(self) -> None:
        if self.held < self.scheduler.slots + self.scheduler.max_waiting:
            self.scheduler.admit()
            self.encoding += 1
        else:
            with pytest.raises(ServerBusy, match="retry in"):
                self.scheduler.admit()

    @precondition(lambda self: self.encoding)
    @rule()
    def withdraw(self) -> None:
        self.scheduler.withdraw()
        self.encoding -= 1

    @precondition(lambda self: self.encoding)
    @rule(priority=st.integers(1, 3), patience=st.none() | st.integers(0, 5))
    def enqueue(self, priority: int, patience: int | None) -> None:
        request = Request(self.arrived, priority, deadline=FAR if patience is None else self.now + patience)
        self.arrived += 1
        self.scheduler.enqueue(request)
        self.encoding -= 1
        self.queue.append(request)

    @rule()
    def join(self) -> None:
        free = len(self.scheduler.running) < self.scheduler.slots
        request = self.scheduler.join()
        if not (free and self.queue):
            assert request is None
            return
        expected = min(self.queue, key=lambda waiting: (waiting.priority_level, waiting.number))
        assert request is expected, "by priority, then by arrival"
        self.queue.remove(expected)
        row = len(self.scheduler.running) - 1
        assert self.rows[row] is None, "the row it was given is in use"
        self.rows[row] = request

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        running = self.scheduler.running
        request = data.draw(st.sampled_from(running))
        row = running.index(request)
        last = len(running) - 1
        move = self.scheduler.leave(request)
        assert move == (None if row == last else Move(last, row))
        if move is not None:
            self.rows[move.target] = self.rows[move.source]
        self.rows[last] = None

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.queue)).cancelled = True

    @rule(later=st.integers(0, 3))
    def drop(self, later: int) -> None:
        self.now += later
        expected = {request for request in self.queue if request.cancelled or self.now >= request.deadline}
        dropped = self.scheduler.dropped(self.now)
        assert len(dropped) == len(expected)
        assert set(dropped) == expected
        self.queue = [request for request in self.queue if request not in expected]

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        assert len(running) <= self.scheduler.slots
        assert self.held <= self.scheduler.slots + self.scheduler.max_waiting
        assert self.scheduler.waiting == self.encoding + len(self.queue)
        assert self.scheduler.idle == (not running and not self.queue)
        assert self.rows == [*running, *[None] * (self.scheduler.slots - len(running))], "running rows are the first"


class TestSchedules(Schedules.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_a_full_scheduler_says_how_full_it_is() -> None:
    scheduler: Scheduler[Request] = Scheduler(2, 1)
    for _ in range(3):
        scheduler.admit()
    with pytest.raises(ServerBusy, match="all 2 slots and 1 waiting places are taken; retry in 1000 ms"):
        scheduler.admit()


def test_a_place_given_back_can_be_taken_again() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 0)
    for _ in range(100):
        scheduler.admit()
        scheduler.withdraw()
    scheduler.admit()
