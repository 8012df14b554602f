"""A full queue of another Triton model delays a caption instead of refusing it, but not without end."""

from __future__ import annotations

import time

import pytest

from captioner.errors import ImageBroken, ServerBusy, from_wire
from captioner.serving import queue_room
from captioner.serving.queue_room import wait_for_room


def test_a_call_is_repeated_until_the_queue_has_room() -> None:
    refusals = [ServerBusy("full"), ServerBusy("full")]

    def call(name: str) -> str:
        if refusals:
            raise refusals.pop()
        return name

    assert wait_for_room(call, "features") == "features"
    assert not refusals


@pytest.mark.parametrize("error", [ServerBusy("full"), ImageBroken("half a file")])
def test_another_error_is_raised_at_once_and_a_full_queue_after_the_limit(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_room, "WAIT_SECONDS", 0.1)
    calls = []

    def call() -> None:
        calls.append(1)
        raise error

    began = time.monotonic()
    with pytest.raises(type(error)):
        wait_for_room(call)
    assert (len(calls) > 1, time.monotonic() - began >= 0.1) == (isinstance(error, ServerBusy),) * 2


def test_tritons_words_for_a_full_queue_are_server_busy() -> None:
    words = "Model preprocess - Error when running inference: [request id: <id_unknown>] Exceeds maximum queue size"
    assert type(from_wire(words)) is ServerBusy
