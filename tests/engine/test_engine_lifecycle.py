"""How requests of the engine start and end: priorities, deadlines, cancellation, failures, shutdown."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
        engine.admit()


def test_close_waits_for_requests_that_are_still_encoding() -> None:
    engine, sequence = make_engine(), RecordedSequence()
    engine.start()
    engine.admit()
    engine.admit()
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    engine.submit(sequence)
    assert sequence.done.wait(10)
    assert closing.is_alive(), "one request is still admitted"
    engine.withdraw()
    closing.join(10)
    assert not closing.is_alive()


@given(st.lists(st.sampled_from(["admit", "withdraw", "submit", "late", "cancel", "broken", "step"]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_order_of_events_leaks_an_admission(events: list[str]) -> None:
    clock = Clock()
    engine = make_engine(slots=2, max_waiting=3, clock=clock)
    encoding, sequences = 0, list[RecordedSequence]()
    for event in events:
        if event == "admit":
            if engine.load().running + engine.load().waiting < 5:
                engine.admit()
                encoding += 1
            else:
                with pytest.raises(ServerBusy):
                    engine.admit()
        elif event == "step":
            clock.now += 1
            engine.step()
        elif event == "cancel":
            for sequence in sequences[-1:]:
                sequence.cancelled = True
        elif encoding and event == "withdraw":
            engine.withdraw()
            encoding -= 1
        elif encoding:
            deadline = clock.now + 1 if event == "late" else float("inf")
            sequences.append(RecordedSequence(len(sequences), max_tokens=3, deadline=deadline))
            if event == "broken":
                sequences[-1].features = None
            engine.submit(sequences[-1])
            encoding -= 1
    for _ in range(encoding):
        engine.withdraw()
    run(engine)
    assert all(len(sequence.reasons) == 1 for sequence in sequences)
    for _ in range(5):
        engine.admit()
    with pytest.raises(ServerBusy):
        engine.admit()
