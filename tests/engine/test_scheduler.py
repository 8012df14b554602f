"""The invariants of the scheduler under any order of events, with plain requests and no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from captioner.engine.scheduler import Scheduler
from captioner.errors import ServerBusy

FAR = float("inf")


@dataclass(eq=False)
class Request:
    number: int
    priority_level: int = 2
    cancelled: bool = False
    deadline: float = FAR
    width: int = 1
    rows: list[int] = field(default_factory=list)


class Schedules(RuleBasedStateMachine):
    """Drive a scheduler and a simple model of it; `rows` is the cache, copied as the scheduler returns it."""

    @initialize(slots=st.integers(1, 4), max_waiting=st.integers(0, 5))
    def begin(self, slots: int, max_waiting: int) -> None:
        self.scheduler: Scheduler[Request] = Scheduler(slots, max_waiting)
        self.encoding = 0
        self.queue: list[Request] = []
        self.rows: list[tuple[Request, int] | None] = [None] * slots  # request and beam of each row
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
    @rule(priority=st.integers(1, 3), patience=st.none() | st.integers(0, 5), width=st.integers(1, 4))
    def enqueue(self, priority: int, patience: int | None, width: int) -> None:
        deadline = FAR if patience is None else self.now + patience
        request = Request(self.arrived, priority, deadline=deadline, width=min(width, self.scheduler.slots))
        self.arrived += 1
        self.scheduler.enqueue(request)
        self.encoding -= 1
        self.queue.append(request)

    @rule()
    def join(self) -> None:
        expected = min(self.queue, key=lambda waiting: (waiting.priority_level, waiting.number), default=None)
        request = self.scheduler.join()
        if expected is None or self.rows.count(None) < expected.width:
            assert request is None, "there is no room, and no request overtakes the one that waits for it"
            return
        assert request is expected, "by priority, then by arrival"
        self.queue.remove(expected)
        assert len(set(expected.rows)) == expected.width
        for beam, row in enumerate(expected.rows):
            assert self.rows[row] is None, "its row is in use"
            self.rows[row] = (expected, beam)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.scheduler.running))
        sources, targets = self.scheduler.leave(request)
        assert len(sources) == len(targets) <= request.width
        held = [None if row is None or row[0] is request else row for row in self.rows]
        for source, target in zip(sources, targets, strict=True):
            assert held[target] is None, "a row in use was overwritten"
            held[target], held[source] = held[source], None
        self.rows = held
        assert request.rows == []

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.queue)).cancelled = True

    @rule(later=st.integers(0, 3))
    def drop_expired(self, later: int) -> None:
        self.now += later
        expected = {request for request in self.queue if request.cancelled or self.now >= request.deadline}
        dropped = self.scheduler.drop_expired(self.now)
        assert len(dropped) == len(expected)
        assert set(dropped) == expected
        self.queue = [request for request in self.queue if request not in expected]

    @invariant()
    def invariants_hold(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        in_use = sum(request.width for request in running)
        assert in_use == len(self.scheduler.rows) <= self.scheduler.slots
        assert self.held <= self.scheduler.slots + self.scheduler.max_waiting
        assert self.scheduler.waiting == self.encoding + len(self.queue)
        assert self.scheduler.idle == (not running and not self.queue)
        assert all(row is None for row in self.rows[in_use:]), "the rows in use are the first ones"
        for request in running:
            assert [self.rows[row] for row in request.rows] == [(request, beam) for beam in range(request.width)]
            assert all(self.scheduler.rows[row] is request for row in request.rows)


class TestSchedules(Schedules.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_a_full_scheduler_names_its_limits() -> None:
    scheduler: Scheduler[Request] = Scheduler(2, 1)
    for _ in range(3):
        scheduler.admit()
    with pytest.raises(ServerBusy, match="all 2 slots are taken and the queue of 1 is full; retry in 1000 ms"):
        scheduler.admit()


def test_a_withdrawn_request_leaves_room_for_another() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 0)
    for _ in range(100):
        scheduler.admit()
        scheduler.withdraw()
    scheduler.admit()
