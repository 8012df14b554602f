"""Answers leave in order, once each, and no slow or broken client holds up another."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from captioner.errors import CaptionerError, RequestCancelled
from captioner.serving.detokenizer import Detokenizer
from captioner.serving.response_sender import ResponseQueue, ResponseSender
from tests.support import tiny
from tests.support.tiny import Recorder

TOKENS = tiny.tokenizer()
TEXT = "a cat on a mat 😀 猫"
IDS: list[int] = TOKENS.encode(TEXT).ids


@pytest.fixture
def sender() -> Iterator[ResponseSender]:
    made = ResponseSender()
    yield made
    made.close()


def opened(sender: ResponseSender, reply: Recorder, streaming: bool = True) -> ResponseQueue:
    outbox = sender.outbox(reply)
    outbox.open(Detokenizer(TOKENS, []), streaming)
    return outbox


def test_the_pieces_join_to_the_caption_and_the_details_come_last(sender: ResponseSender) -> None:
    reply = Recorder()
    outbox = opened(sender, reply)
    for token in IDS:
        outbox.put(token)
    outbox.finish(lambda: "{}")
    assert reply.ended.wait(5)
    assert "".join(reply.pieces) == TEXT
    assert reply.details == [""] * (len(reply.pieces) - 1) + ["{}"]


def test_without_streaming_there_is_one_response(sender: ResponseSender) -> None:
    reply = Recorder()
    outbox = opened(sender, reply, streaming=False)
    for token in IDS:
        outbox.put(token)
        time.sleep(0.001)
    outbox.finish(lambda: "{}")
    assert reply.ended.wait(5)
    assert (reply.pieces, reply.details) == ([TEXT], ["{}"])


def test_the_first_token_goes_alone_and_what_waits_behind_a_slow_client_goes_together(sender: ResponseSender) -> None:
    slow = threading.Event()
    reply = Recorder(lambda: bool(slow.wait(5)))
    outbox = opened(sender, reply)
    for token in IDS:
        outbox.put(token)
    time.sleep(0.05)
    slow.set()
    time.sleep(0.05)
    outbox.finish(lambda: "{}")
    assert reply.ended.wait(5)
    assert reply.pieces == [TOKENS.decode(IDS[:1]), TEXT.removeprefix(TOKENS.decode(IDS[:1])), ""]


def test_a_failure_is_the_only_end(sender: ResponseSender) -> None:
    reply = Recorder()
    outbox = opened(sender, reply)
    outbox.put(IDS[0])
    outbox.fail(RequestCancelled("the client left"))
    outbox.finish(lambda: "{}")
    outbox.put(IDS[1])
    outbox.fail(CaptionerError("again"))
    assert reply.ended.wait(5)
    time.sleep(0.05)
    assert (reply.finals, [error.code for error in reply.errors]) == (1, ["CANCELLED"])


def test_a_request_refused_before_its_text_is_known_is_answered(sender: ResponseSender) -> None:
    reply = Recorder()
    sender.outbox(reply).fail(CaptionerError("no"))
    assert reply.ended.wait(5)


@pytest.mark.parametrize("seed", range(5))
def test_every_request_ends_exactly_once_whatever_the_interleaving(sender: ResponseSender, seed: int) -> None:
    replies = [Recorder(lambda: time.sleep(random.random() / 2000)) for _ in range(30)]
    outboxes = [opened(sender, reply, streaming=bool(i % 3)) for i, reply in enumerate(replies)]

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(200):
            outbox = chance.choice(outboxes)
            action = chance.random()
            if action < 0.9:
                outbox.put(chance.choice(IDS))
            elif action < 0.95:
                outbox.finish(lambda: "{}")
            else:
                outbox.fail(CaptionerError("no"))
            outbox.is_cancelled()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outbox in outboxes:
        outbox.finish(lambda: "{}")
    assert all(reply.ended.wait(10) for reply in replies)
    time.sleep(0.05)
    assert {reply.finals for reply in replies} == {1}
    assert not any(reply.asked_after_the_end for reply in replies)


def test_a_client_whose_connection_breaks_does_not_silence_the_others(sender: ResponseSender) -> None:
    def broken() -> None:
        raise BrokenPipeError("gone")

    bad, good = Recorder(broken), Recorder()
    for reply in (bad, good):
        outbox = opened(sender, reply)
        outbox.put(IDS[0])
        outbox.put(IDS[1])
        outbox.finish(lambda: "{}")
    assert good.ended.wait(5)
    assert "".join(good.pieces) == TOKENS.decode(IDS[:2])
    assert bad.ended.wait(5), "Triton must be told of an end, or the request is kept for ever"
    assert bad.finals == 1


def test_details_that_cannot_be_written_end_in_an_error_not_in_silence(sender: ResponseSender) -> None:
    def details() -> str:
        raise ValueError("no details")

    reply = Recorder()
    opened(sender, reply).finish(details)
    assert reply.ended.wait(5)
    assert "no details" in str(reply.errors[0])


def test_a_first_token_goes_before_everybody_elses_next(sender: ResponseSender) -> None:
    go, order = threading.Event(), []
    held = opened(sender, Recorder(lambda: go.wait(10)))
    old = [opened(sender, Recorder(lambda: order.append("next"))) for _ in range(5)]
    new = opened(sender, Recorder(lambda: order.append("first")))
    for outbox in old:
        outbox.put(IDS[0])
    until = time.monotonic() + 5
    while len(order) < 5 and time.monotonic() < until:
        time.sleep(0.001)
    order.clear()
    held.put(IDS[0])  # the sender is kept busy while all the others gather behind it
    time.sleep(0.05)
    for outbox in [*old, new]:
        outbox.put(IDS[1])
    go.set()
    while len(order) < 6 and time.monotonic() < until:
        time.sleep(0.001)
    assert order == ["first", *["next"] * 5]


def test_closing_sends_everything_that_waits() -> None:
    sender, reply = ResponseSender(), Recorder(lambda: time.sleep(0.01))
    outbox = opened(sender, reply)
    for token in IDS:
        outbox.put(token)
    outbox.finish(lambda: "{}")
    sender.close()
    assert reply.finals == 1
    assert "".join(reply.pieces) == TEXT


def test_nobody_asks_whether_a_client_left_after_its_end(sender: ResponseSender) -> None:
    reply = Recorder()
    outbox = opened(sender, reply)
    assert outbox.is_cancelled() is False
    outbox.finish(lambda: "{}")
    assert reply.ended.wait(5)
    outbox.is_cancelled()
    assert not reply.asked_after_the_end, "Triton has freed what the question would look at"
