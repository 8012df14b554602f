"""How requests of the engine start and end: priorities, deadlines, cancellation, failures, shutdown."""

from __future__ import annotations

import gc
import math
import random
import threading
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.engine import engine as engine_module
from captioner.engine.beam_search import BeamSearch
from captioner.engine.engine import MAX_PREFILLS
from captioner.engine.sequence import Sequence
from captioner.errors import ServerBusy, ServerStopping
from tests.engine.harness import LONG, Clock, RecordedSequence, crowd, make_engine, make_faulty, run, submit
from tests.support import tiny


def test_features_are_released_once_the_cache_holds_them() -> None:
    engine, sequence = make_engine(), RecordedSequence()
    submit(engine, sequence)
    engine.step()
    assert sequence.features is None


@pytest.mark.parametrize("method", ["decode", "copy"])
def test_a_failing_step_fails_its_captions_and_the_engine_continues(method: str) -> None:
    engine, decoder = make_faulty(3)
    running, waiting = [RecordedSequence(i, max_tokens=4 + 10 * i) for i in range(3)], RecordedSequence(5)
    submit(engine, *running)
    engine.step()
    submit(engine, waiting)
    decoder.fails = frozenset({method})
    for _ in range(100):
        if not all(sequence.reasons for sequence in running):
            engine.step()
    decoder.fails = frozenset()
    run(engine)
    assert all(len(sequence.reasons) == 1 for sequence in running)
    failed = [sequence for sequence in running if sequence.reasons == ["failed"]]
    assert len(failed) >= 2
    assert all(f"{method} failed" in str(sequence.error) for sequence in failed)
    assert waiting.received == waiting.alone()
    assert waiting.error is None


def test_every_request_ends_even_when_every_decoder_call_fails() -> None:
    engine, decoder = make_faulty(3)
    sequences = [RecordedSequence(i, max_tokens=20) for i in range(8)]
    submit(engine, *sequences)
    engine.step()
    decoder.fails = frozenset({"prefill", "decode", "copy"})
    run(engine)
    assert [sequence.reasons for sequence in sequences] == [["failed"]] * 8


def test_a_failing_prefill_fails_only_its_own_caption() -> None:
    engine, good, bad = make_engine(), RecordedSequence(1), RecordedSequence(2)
    bad.features = torch.zeros(tiny.FEATURE_TOKENS, tiny.FEATURE_WIDTH + 1)
    missing = RecordedSequence(3)
    missing.features = None
    submit(engine, good, bad, missing)
    run(engine)
    assert bad.reasons == missing.reasons == ["failed"]
    assert good.received == good.alone()


def test_a_deadline_before_the_first_token_gives_no_tokens() -> None:
    clock = Clock()
    engine = make_engine(slots=1, clock=clock)
    first, late = RecordedSequence(LONG, max_tokens=20), RecordedSequence(2, deadline=5.0)
    submit(engine, first, late)
    engine.step()
    clock.now = 5.0
    engine.step()
    assert (late.reasons, late.received) == (["deadline"], [])
    assert first.reasons == []


def test_a_deadline_while_decoding_keeps_the_tokens_so_far() -> None:
    clock = Clock()
    engine, sequence = make_engine(clock=clock), RecordedSequence(LONG, max_tokens=20, deadline=5.0)
    other = RecordedSequence(1)
    submit(engine, sequence, other)
    engine.step()
    engine.step()
    received = list(sequence.received)
    assert received
    clock.now = 5.0
    run(engine)
    assert sequence.reasons == ["deadline"]
    assert sequence.received == received == sequence.alone()[: len(received)]
    assert other.received == other.alone()


def test_a_cancelled_caption_gets_no_more_tokens_and_frees_its_slot() -> None:
    engine = make_engine(slots=1)
    sequence, waiting, gone = RecordedSequence(LONG, max_tokens=20), RecordedSequence(1), RecordedSequence(2)
    submit(engine, sequence, waiting, gone)
    engine.step()
    received = list(sequence.received)
    sequence.cancelled = gone.cancelled = True
    engine.step()
    assert sequence.received == received
    assert sequence.reasons == gone.reasons == ["cancelled"]
    assert gone.received == []
    assert waiting.received, "the next request gets the slot in the same step"


def test_the_next_slot_goes_to_the_highest_priority() -> None:
    engine, order = make_engine(slots=1), []
    sequences = {level: RecordedSequence(level, max_tokens=1, priority_level=level) for level in (3, 2, 1)}
    for level, sequence in sequences.items():
        sequence.on_finish = lambda _, level=level: order.append(level)  # type: ignore[misc]
        submit(engine, sequence)
    run(engine)
    assert order == [1, 2, 3]


def test_close_finishes_the_requests_of_all_threads() -> None:
    engine, sequences = make_engine(slots=4), crowd(random.Random(9), 24)
    engine.start()
    threads = [threading.Thread(target=submit, args=(engine, *sequences[i::4])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    engine.close()
    assert all(len(sequence.reasons) == 1 for sequence in sequences)
    assert [sequence.received for sequence in sequences] == [sequence.alone() for sequence in sequences]
    with pytest.raises(ServerStopping):
        engine.admit(RecordedSequence())


def test_close_waits_for_requests_that_are_still_encoding() -> None:
    engine, sequence, other = make_engine(), RecordedSequence(), RecordedSequence()
    engine.start()
    engine.admit(sequence)
    engine.admit(other)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    engine.submit(sequence)
    assert sequence.done.wait(10)
    assert closing.is_alive(), "one request is still admitted"
    engine.withdraw(other)
    closing.join(10)
    assert not closing.is_alive()


@given(st.lists(st.sampled_from(["admit", "withdraw", "submit", "late", "cancel", "broken", "step"]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_order_of_events_leaks_an_admission(events: list[str]) -> None:  # noqa: PLR0912
    clock = Clock()
    engine = make_engine(slots=2, max_waiting=3, clock=clock)
    encoding, sequences = list[RecordedSequence](), list[RecordedSequence]()
    for event in events:
        if event == "admit":
            sequence = RecordedSequence(len(sequences), max_tokens=3)
            if engine.load().running + engine.load().waiting < 5:
                engine.admit(sequence)
                encoding.append(sequence)
            else:
                with pytest.raises(ServerBusy):
                    engine.admit(sequence)
        elif event == "step":
            clock.now += 1
            engine.step()
        elif event == "cancel":
            for sequence in sequences[-1:]:
                sequence.cancelled = True
        elif encoding and event == "withdraw":
            engine.withdraw(encoding.pop())
        elif encoding:
            sequences.append(encoding.pop())
            if event == "late":
                sequences[-1].deadline = clock.now + 1
            if event == "broken":
                sequences[-1].features = None
            engine.submit(sequences[-1])
    for sequence in encoding:
        engine.withdraw(sequence)
    run(engine)
    assert all(len(sequence.reasons) == 1 for sequence in sequences)
    for _ in range(5):
        engine.admit(RecordedSequence())
    with pytest.raises(ServerBusy):
        engine.admit(RecordedSequence())


def test_a_burst_of_arrivals_holds_up_a_running_caption_by_two_prefills_at_most() -> None:
    engine = make_engine(slots=12)
    running, prefills = RecordedSequence(LONG, max_tokens=20), list[int]()
    join = engine._runner.join

    def counting_join(sequence: Sequence) -> None:
        prefills.append(len(running.received))
        join(sequence)

    engine._runner.join = counting_join  # type: ignore[method-assign]
    submit(engine, running)
    engine.step()
    burst = [RecordedSequence(number, max_tokens=20) for number in range(10)]
    submit(engine, *burst)
    for _ in range(5):
        engine.step()
    assert max(Counter(prefills).values()) == MAX_PREFILLS
    assert burst[0].received, "the first of the burst has its first token before the last one is prefilled"
    run(engine)
    assert [sequence.received for sequence in burst] == [sequence.alone() for sequence in burst]


def test_a_request_that_expires_behind_a_prefill_is_not_prefilled() -> None:
    clock = Clock()
    engine = make_engine(slots=4, clock=clock)
    first, late = RecordedSequence(1), RecordedSequence(2, deadline=5.0)
    join = engine._runner.join

    def slow_join(sequence: Sequence) -> None:
        assert sequence is first
        clock.now = 6.0
        join(sequence)

    engine._runner.join = slow_join  # type: ignore[method-assign]
    submit(engine, first, late)
    run(engine)
    assert first.received == first.alone()
    assert late.reasons == ["deadline"]


@pytest.mark.parametrize("state", ["prepared", "to encode", "encoding"])
def test_deadlines_and_cancels_end_a_request_before_the_engine_has_it(state: str) -> None:
    clock = Clock()
    engine = make_engine(slots=1, max_waiting=1, clock=clock)
    late, leaving = RecordedSequence(1, deadline=5.0), RecordedSequence(2)
    for sequence in (late, leaving):
        engine.admit(sequence)
        if state != "prepared":
            engine.enqueue_encode(sequence)
        if state == "encoding":
            assert engine.next_to_encode() is sequence
    clock.now, leaving.cancelled = 5.0, True
    engine.drop_expired()
    assert (late.reasons, leaving.reasons) == (["deadline"], ["cancelled"])
    assert engine.load().waiting == 0, "their places are free"
    for sequence in (late, leaving):
        engine.submit(sequence)  # the encoding ends later
        assert not engine.withdraw(sequence)
    run(engine)
    assert (late.reasons, leaving.reasons) == (["deadline"], ["cancelled"])


def test_an_evicted_request_is_refused_as_busy() -> None:
    engine = make_engine(slots=1, max_waiting=2)
    flood = [RecordedSequence(number, client_id="flood") for number in range(3)]
    submit(engine, *flood)
    single = RecordedSequence(4, client_id="single")
    submit(engine, single)
    assert [sequence.reasons for sequence in flood] == [[], [], ["failed"]]
    assert isinstance(flood[-1].error, ServerBusy)
    run(engine)
    assert single.received == single.alone()


@pytest.mark.parametrize("width", [1, 2])
def test_logits_that_are_nan_fail_their_own_caption(width: int) -> None:
    engine = make_engine(slots=4)
    bad, good = RecordedSequence(1, max_tokens=20), RecordedSequence(2, max_tokens=20)
    if width > 1:
        bad.beams = BeamSearch(bad.prompt_ids, width=width, max_tokens=20, stop_ids=(1, tiny.STOP))
    forward = engine._runner._forward

    def nan_in_first_rows(*arguments: Any) -> Any:
        tokens, logprobs, logits = forward(*arguments)
        if len(bad.received) >= (1 if width == 1 else 0) and bad.rows:
            logprobs[bad.rows], logits[bad.rows] = math.nan, math.nan
        return tokens, logprobs, logits

    engine._runner._forward = nan_in_first_rows  # type: ignore[method-assign, assignment]
    submit(engine, bad, good)
    run(engine)
    assert bad.reasons == ["failed"]
    assert "not numbers (NaN)" in str(bad.error)
    assert good.received == good.alone()


def test_a_lost_device_ends_the_process_and_a_full_memory_does_not() -> None:
    for error, deaths in ((torch.OutOfMemoryError("full"), 0), (torch.AcceleratorError("lost"), 1)):
        died = list[None]()
        engine, decoder = make_faulty(2)
        engine._on_death = lambda: died.append(None)  # noqa: B023
        decoder.fails, decoder.error = frozenset({"decode"}), error
        sequence = RecordedSequence(1)
        submit(engine, sequence)
        engine.step()
        assert (sequence.reasons, len(died)) == (["failed"], deaths)


def test_a_dead_decode_thread_ends_the_process() -> None:
    died = threading.Event()
    engine = make_engine()
    engine._on_death = died.set
    engine.step = lambda: 1 / 0  # type: ignore[method-assign, assignment]
    engine.start()
    submit(engine, RecordedSequence())
    assert died.wait(10)


def test_a_callback_that_raises_does_not_end_the_decode_thread() -> None:
    engine = make_engine()
    bad, good = RecordedSequence(1), RecordedSequence(2)
    bad.on_finish = lambda _: 1 / 0  # type: ignore[assignment]
    submit(engine, bad, good)
    run(engine)
    assert good.received == good.alone()


def test_nothing_of_a_finished_request_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine()
    gc.disable()
    try:
        alive: weakref.WeakSet[Any] = weakref.WeakSet()
        for number in range(5):
            sequence = RecordedSequence(number, deadline=-1.0 if number == 3 else math.inf)
            alive.update((sequence, sequence.features))
            sequence.on_token = lambda _, keep=sequence: keep  # type: ignore[misc]
            sequence.on_finish = lambda _, keep=sequence: keep  # type: ignore[misc]
            if number == 4:
                sequence.prompt_ids = []  # its prefill fails
            submit(engine, sequence)
        del sequence
        with caplog.at_level("CRITICAL", engine_module.__name__):  # a record would hold its traceback
            run(engine)
        assert not list(alive)
    finally:
        gc.enable()
