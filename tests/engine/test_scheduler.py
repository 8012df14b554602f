"""The invariants of the scheduler under any order of events, with plain requests and no torch."""

from __future__ import annotations

from collections import Counter
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
    number: int = 0
    priority_level: int = 2
    cancelled: bool = False
    deadline: float = FAR
    width: int = 1
    client_id: str = ""
    rows: list[int] = field(default_factory=list)
    order: tuple[int, int, int] = (0, 0, 0)


class Schedules(RuleBasedStateMachine):
    """Drive a scheduler and a simple model of it; `rows` is the cache, copied as the scheduler returns it."""

    @initialize(slots=st.integers(1, 4), max_waiting=st.integers(0, 5))
    def begin(self, slots: int, max_waiting: int) -> None:
        self.scheduler: Scheduler[Request] = Scheduler(slots, max_waiting)
        self.elsewhere: list[Request] = []  # being prepared or encoded
        self.to_encode: list[Request] = []
        self.queue: list[Request] = []
        self.rows: list[tuple[Request, int] | None] = [None] * slots  # request and beam of each row
        self.now = 0

    @property
    def held(self) -> list[Request]:
        return [*self.elsewhere, *self.to_encode, *self.queue, *self.scheduler.running]

    def forget(self, request: Request) -> None:
        for requests in (self.elsewhere, self.to_encode, self.queue):
            if request in requests:
                requests.remove(request)

    @rule(
        priority=st.integers(1, 3),
        patience=st.none() | st.integers(0, 5),
        width=st.integers(1, 4),
        client=st.sampled_from("abc"),
    )
    def admit(self, priority: int, patience: int | None, width: int, client: str) -> None:
        deadline = FAR if patience is None else self.now + patience
        width = min(width, self.scheduler.slots)
        request = Request(0, priority, deadline=deadline, width=width, client_id=client)
        counts = Counter(each.client_id for each in self.held)
        greedy = {each for each in (*self.to_encode, *self.queue) if counts[each.client_id] > counts[client] + 1}
        is_full = len(self.held) == self.scheduler.slots + self.scheduler.max_waiting
        if is_full and not greedy:
            with pytest.raises(ServerBusy, match="retry in"):
                self.scheduler.admit(request)
            return
        evicted = self.scheduler.admit(request)
        assert (evicted is not None) == is_full
        if evicted is not None:
            assert evicted in greedy
            self.forget(evicted)
        self.elsewhere.append(request)

    @precondition(lambda self: self.elsewhere)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.elsewhere))
        assert self.scheduler.withdraw(request)
        assert not self.scheduler.withdraw(request), "it is withdrawn once"
        self.elsewhere.remove(request)

    @precondition(lambda self: self.elsewhere)
    @rule(data=st.data())
    def enqueue_encode(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.elsewhere))
        self.scheduler.enqueue_encode(request)
        self.elsewhere.remove(request)
        self.to_encode.append(request)

    @rule()
    def next_to_encode(self) -> None:
        expected = min(self.to_encode, key=lambda waiting: waiting.order, default=None)
        assert self.scheduler.next_to_encode() is expected
        if expected is not None:
            self.to_encode.remove(expected)
            self.elsewhere.append(expected)

    @precondition(lambda self: self.elsewhere)
    @rule(data=st.data())
    def enqueue(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.elsewhere))
        self.scheduler.enqueue(request)
        self.elsewhere.remove(request)
        self.queue.append(request)

    @rule()
    def join(self) -> None:
        expected = min(self.queue, key=lambda waiting: waiting.order, default=None)
        request = self.scheduler.join()
        if expected is None or self.rows.count(None) < expected.width:
            assert request is None, "there is no room, and no request overtakes the one that waits for it"
            return
        assert request is expected, "by priority, then by turn, then by arrival"
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

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.held)).cancelled = True

    @rule(later=st.integers(0, 3))
    def drop_expired(self, later: int) -> None:
        self.now += later
        waiting = [*self.elsewhere, *self.to_encode, *self.queue]
        expected = {request for request in waiting if request.cancelled or self.now >= request.deadline}
        dropped = self.scheduler.drop_expired(self.now)
        assert len(dropped) == len(expected)
        assert set(dropped) == expected
        for request in dropped:
            self.forget(request)
            self.scheduler.enqueue(request)  # its encoding ends later, and changes nothing

    @invariant()
    def invariants_hold(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.scheduler.running
        in_use = sum(request.width for request in running)
        assert in_use == len(self.scheduler.rows) <= self.scheduler.slots
        assert len(self.held) <= self.scheduler.slots + self.scheduler.max_waiting
        assert self.scheduler.waiting == len(self.held) - len(running)
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
        scheduler.admit(Request())
    with pytest.raises(ServerBusy, match="all 2 slots are taken and the queue of 1 is full; retry in 1000 ms"):
        scheduler.admit(Request())


def test_a_withdrawn_request_leaves_room_for_another() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 0)
    for _ in range(100):
        request = Request()
        scheduler.admit(request)
        scheduler.withdraw(request)
    scheduler.admit(Request())


def queued(scheduler: Scheduler[Request], client: str, number: int) -> Request:
    request = Request(number, client_id=client)
    scheduler.admit(request)
    scheduler.enqueue_encode(request)
    return request


def start_next(scheduler: Scheduler[Request]) -> Request:
    """Encode and start the next request, after the one that runs has left."""
    for running in list(scheduler.running):
        scheduler.leave(running)
    while (request := scheduler.next_to_encode()) is not None:
        scheduler.enqueue(request)
    started = scheduler.join()
    assert started is not None
    return started


def test_one_request_starts_before_the_hundreds_that_another_client_sent_earlier() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 500)
    flood = [queued(scheduler, "flood", number) for number in range(400)]
    assert [start_next(scheduler) for _ in range(10)] == flood[:10]
    single = queued(scheduler, "single", 0)
    assert single in (start_next(scheduler), start_next(scheduler))


def test_clients_take_turns_however_many_requests_each_has_sent() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 500)
    for client, count in {"a": 50, "b": 5, "c": 20}.items():
        for number in range(count):
            queued(scheduler, client, number)
    started = [start_next(scheduler).client_id for _ in range(15)]
    assert Counter(started) == {"a": 5, "b": 5, "c": 5}
    assert all({*started[at : at + 3]} == {"a", "b", "c"} for at in range(0, 15, 3))


def test_a_client_that_was_idle_has_not_saved_up_turns() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 500)
    for number in range(40):
        queued(scheduler, "busy", number)
    for _ in range(20):
        start_next(scheduler)
    for number in range(10):
        queued(scheduler, "idle", number)
    started = Counter(start_next(scheduler).client_id for _ in range(10))
    assert abs(started["idle"] - started["busy"]) <= 2


def test_a_full_queue_makes_room_for_a_client_with_fewer_requests() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 9)
    flood = [queued(scheduler, "flood", number) for number in range(10)]
    single = Request(client_id="single")
    assert scheduler.admit(single) is flood[-1], "the newest one of the client with the most"
    with pytest.raises(ServerBusy):
        scheduler.admit(Request(client_id="flood"))


def test_requests_that_are_encoded_or_run_keep_their_places() -> None:
    scheduler: Scheduler[Request] = Scheduler(1, 1)
    for number in range(2):
        queued(scheduler, "flood", number)
        scheduler.next_to_encode()
    with pytest.raises(ServerBusy):
        scheduler.admit(Request(client_id="single"))
