"""Responses are sent in order, each request ends exactly once, and a slow or broken client does not block another."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

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


def opened(sender: ResponseSender, writer: Recorder, streaming: bool = True) -> ResponseQueue:
    queue = sender.queue(writer)
    queue.open(Detokenizer(TOKENS, []), streaming)
    return queue


def test_the_pieces_join_to_the_caption_and_the_details_come_last(sender: ResponseSender) -> None:
    writer = Recorder()
    queue = opened(sender, writer)
    for token in IDS:
        queue.put(token)
    queue.finish(lambda: "{}")
    assert writer.ended.wait(5)
    assert "".join(writer.pieces) == TEXT
    assert writer.details == [""] * (len(writer.pieces) - 1) + ["{}"]


@pytest.mark.parametrize("streaming", [True, False])
def test_the_details_say_that_the_text_ended_before_a_repeated_clause(sender: ResponseSender, streaming: bool) -> None:
    writer = Recorder()
    queue = sender.queue(writer)
    queue.open(Detokenizer(TOKENS, [], repetition_guard=True), streaming)
    assert queue.text_ended_by is None
    for token in TOKENS.encode("A cat sits on a mat, and a cat sits on a mat. It sleeps.").ids:
        queue.put(token)
    queue.finish(lambda: str(queue.text_ended_by))
    assert writer.ended.wait(5)
    assert "".join(writer.pieces) == "A cat sits on a mat." and writer.details[-1] == "repetition"


def test_without_streaming_there_is_one_response(sender: ResponseSender) -> None:
    writer = Recorder()
    queue = opened(sender, writer, streaming=False)
    for token in IDS:
        queue.put(token)
        time.sleep(0.001)
    queue.finish(lambda: "{}")
    assert writer.ended.wait(5)
    assert (writer.pieces, writer.details) == ([TEXT], ["{}"])


def test_the_first_token_is_sent_alone_and_queued_tokens_are_sent_together(
    sender: ResponseSender,
) -> None:
    slow = threading.Event()
    writer = Recorder(lambda: bool(slow.wait(5)))
    queue = opened(sender, writer)
    for token in IDS:
        queue.put(token)
    time.sleep(0.05)
    slow.set()
    time.sleep(0.05)
    queue.finish(lambda: "{}")
    assert writer.ended.wait(5)
    assert writer.pieces == [TOKENS.decode(IDS[:1]), TEXT.removeprefix(TOKENS.decode(IDS[:1])), ""]


def test_only_the_first_final_response_is_sent(sender: ResponseSender) -> None:
    writer = Recorder()
    queue = opened(sender, writer)
    queue.put(IDS[0])
    queue.fail(RequestCancelled("the client cancelled the request"))
    queue.finish(lambda: "{}")
    queue.put(IDS[1])
    queue.fail(CaptionerError("again"))
    assert writer.ended.wait(5)
    time.sleep(0.05)
    assert (writer.finals, [error.code for error in writer.errors]) == (1, ["CANCELLED"])


def test_a_request_refused_before_its_queue_is_opened_is_answered(sender: ResponseSender) -> None:
    writer = Recorder()
    sender.queue(writer).fail(CaptionerError("no"))
    assert writer.ended.wait(5)


@pytest.mark.parametrize("seed", range(5))
def test_every_request_ends_exactly_once_whatever_the_interleaving(sender: ResponseSender, seed: int) -> None:
    writers = [Recorder(lambda: time.sleep(random.random() / 2000)) for _ in range(30)]
    queues = [opened(sender, writer, streaming=bool(i % 3)) for i, writer in enumerate(writers)]

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(200):
            queue = chance.choice(queues)
            action = chance.random()
            if action < 0.9:
                queue.put(chance.choice(IDS))
            elif action < 0.95:
                queue.finish(lambda: "{}")
            else:
                queue.fail(CaptionerError("no"))
            queue.is_cancelled()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for queue in queues:
        queue.finish(lambda: "{}")
    assert all(writer.ended.wait(10) for writer in writers)
    time.sleep(0.05)
    assert {writer.finals for writer in writers} == {1}
    assert not any(writer.polled_after_final for writer in writers)


def test_a_broken_connection_does_not_stop_the_responses_to_other_clients(sender: ResponseSender) -> None:
    def broken() -> None:
        raise BrokenPipeError("gone")

    bad, good = Recorder(broken), Recorder()
    for writer in (bad, good):
        queue = opened(sender, writer)
        queue.put(IDS[0])
        queue.put(IDS[1])
        queue.finish(lambda: "{}")
    assert good.ended.wait(5)
    assert "".join(good.pieces) == TOKENS.decode(IDS[:2])
    assert bad.ended.wait(5), "without a final response, Triton keeps the request for ever"
    assert bad.finals == 1


def test_details_that_cannot_be_serialized_end_the_request_with_an_error(sender: ResponseSender) -> None:
    def details() -> str:
        raise ValueError("no details")

    writer = Recorder()
    opened(sender, writer).finish(details)
    assert writer.ended.wait(5)
    assert "no details" in str(writer.errors[0])


def test_a_first_token_is_sent_before_the_later_tokens_of_others(sender: ResponseSender) -> None:
    go, order = threading.Event(), []
    held = opened(sender, Recorder(lambda: go.wait(10)))
    old = [opened(sender, Recorder(lambda: order.append("next"))) for _ in range(5)]
    new = opened(sender, Recorder(lambda: order.append("first")))
    for queue in old:
        queue.put(IDS[0])
    until = time.monotonic() + 5
    while len(order) < 5 and time.monotonic() < until:
        time.sleep(0.001)
    order.clear()
    held.put(IDS[0])  # keeps the sender busy while all others queue behind it
    time.sleep(0.05)
    for queue in [*old, new]:
        queue.put(IDS[1])
    go.set()
    while len(order) < 6 and time.monotonic() < until:
        time.sleep(0.001)
    assert order == ["first", *["next"] * 5]


def test_close_sends_everything_that_is_queued() -> None:
    sender, writer = ResponseSender(), Recorder(lambda: time.sleep(0.01))
    queue = opened(sender, writer)
    for token in IDS:
        queue.put(token)
    queue.finish(lambda: "{}")
    sender.close()
    assert writer.finals == 1
    assert "".join(writer.pieces) == TEXT


def test_cancellation_is_not_polled_after_the_final_response(sender: ResponseSender) -> None:
    writer = Recorder()
    queue = opened(sender, writer)
    assert queue.is_cancelled() is False
    queue.finish(lambda: "{}")
    assert writer.ended.wait(5)
    queue.is_cancelled()
    assert not writer.polled_after_final, "Triton has freed the request"


def test_a_flood_of_refusals_does_not_starve_a_running_stream(sender: ResponseSender) -> None:
    order: list[str] = []
    go = threading.Event()
    held = opened(sender, Recorder(lambda: go.wait(10)))
    running = opened(sender, Recorder(lambda: order.append("token")))
    running.put(IDS[0])
    wait_for(lambda: order == ["token"])
    held.put(IDS[0])  # keeps the sender busy while all others queue behind it
    time.sleep(0.05)
    for _ in range(200):
        sender.queue(Refused(order)).fail(CaptionerError("busy"))
    running.put(IDS[1])
    go.set()
    wait_for(lambda: len(order) == 202)
    assert order.index("token", 1) <= 2


def test_running_streams_do_not_starve_a_refusal(sender: ResponseSender) -> None:
    order: list[str] = []
    go = threading.Event()
    held = opened(sender, Recorder(lambda: go.wait(10)))
    running = [opened(sender, Recorder(lambda: order.append("token"))) for _ in range(50)]
    held.put(IDS[0])
    time.sleep(0.05)
    for queue in running:
        queue.put(IDS[0])
    sender.queue(Refused(order)).fail(CaptionerError("busy"))
    go.set()
    wait_for(lambda: len(order) == 51)
    assert order.index("refusal") <= 1


def test_a_caption_that_is_not_streamed_is_detokenized_once(sender: ResponseSender) -> None:
    pushes: list[int] = []

    class Counting(Detokenizer):
        def push(self, ids: list[int], final: bool = False) -> str:
            pushes.append(len(ids))
            return super().push(ids, final)

    writer = Recorder()
    queue = sender.queue(writer)
    queue.open(Counting(TOKENS, []), False)
    for token in IDS:
        queue.put(token)
        time.sleep(0.001)
    queue.finish(lambda: "{}")
    assert writer.ended.wait(5)
    assert (pushes, writer.text) == ([len(IDS)], TEXT)


class Refused(Recorder):
    """Records the order of refusals."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order

    def fail(self, error: CaptionerError) -> None:
        self.order.append("refusal")
        super().fail(error)


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "not true within 10 s"
        time.sleep(0.001)
