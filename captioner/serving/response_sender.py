"""Answers leave through one thread, so that no decode step ever waits for a client.

Telling Triton anything is a blocking round trip between processes (0.1 to 3 ms). The decode thread only drops token
ids into a request's outbox; what piles up there meanwhile leaves as one piece.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import PriorityQueue
from typing import Protocol

from captioner.errors import CaptionerError
from captioner.serving.detokenizer import Detokenizer

log = logging.getLogger(__name__)
_FIRST, _NEXT, _END = range(3)  # what is sent before what


class ResponseWriter(Protocol):
    """The way back to one client; every call may block, and none is made after the final one."""

    def send(self, caption: str, details: str, final: bool) -> None:
        """Sends new text; `details` is empty but in the final response."""

    def fail(self, error: CaptionerError) -> None:
        """Sends an error as the final response."""

    def is_cancelled(self) -> bool:
        """Whether the client has left."""


Close = Callable[[ResponseWriter, str], None]


class ResponseQueue:
    """What one client is still to be told. Closed once, by `finish` or `fail`; what comes later is dropped."""

    def __init__(self, reply: ResponseWriter, post: Callable[[ResponseQueue], None]) -> None:
        self._reply: ResponseWriter | None = reply
        self._post = post
        self._lock = threading.Lock()
        self._talking = threading.Lock()
        self._posted = False
        self._token_ids: list[int] = []
        self._close: Close | None = None
        self.sent = False  # a first token has gone
        self._text: Detokenizer | None = None
        self._streaming = False
        self._unsent = ""

    def open(self, text: Detokenizer, streaming: bool) -> None:
        """Says how ids become text, before the first `put`."""
        self._text, self._streaming = text, streaming

    def put(self, token_id: int) -> None:
        """One more token of the caption."""
        with self._lock:
            self._token_ids.append(token_id)
            self._wake()

    def finish(self, details: Callable[[], str]) -> None:
        """The caption is whole; `details` is asked for at the last moment."""
        self._close_with(lambda reply, text: reply.send(text, details(), True))

    def fail(self, error: CaptionerError) -> None:
        """There will be no (more) caption."""
        self._close_with(lambda reply, _: reply.fail(error))

    def is_cancelled(self) -> bool:
        """Whether the client has left; never asked after the final response, when Triton has freed the request."""
        with self._talking:
            return self._reply is not None and self._reply.is_cancelled()

    def _close_with(self, close: Close) -> None:
        with self._lock:
            if self._close is None:
                self._close = close
                self._wake()

    def _wake(self) -> None:
        if not self._posted:
            self._posted = True
            self._post(self)

    def flush(self) -> None:
        """Tells the client everything that has gathered; runs on the sender thread."""
        with self._lock:
            # The first token goes alone: it is what the client waits for.
            count = len(self._token_ids) if self.sent else 1
            ids, self._token_ids = self._token_ids[:count], self._token_ids[count:]
            more = bool(self._token_ids)
            close = None if more else self._close
            self._posted = more
            self.sent = self.sent or bool(ids)
            if more:
                self._post(self)
        with self._talking:
            if self._reply is not None and self._tell(self._reply, ids, close):
                self._reply = None  # not left to the collector: at the interpreter's end Triton's part waits for ever
            if self._reply is None:
                self._close = None  # an error's traceback knows the reply as well

    def _tell(self, reply: ResponseWriter, ids: list[int], close: Close | None) -> bool:
        """Whether that was the last."""
        try:
            if self._text is not None:
                self._unsent += self._text.push(ids, final=close is not None)
            if close is not None:
                close(reply, self._unsent)
            elif self._streaming and self._unsent:
                reply.send(self._unsent, "", False)
                self._unsent = ""
        except Exception as error:  # whatever failed, the client must hear of an end
            log.exception("an answer could not be sent")
            with suppress(Exception):
                reply.fail(CaptionerError(f"{type(error).__name__}: {error}"))
            return True
        return close is not None


class ResponseSender:
    """The thread that flushes outboxes: first tokens before all others, then in the order in which things happened.

    A step gives every running caption a token at once, and each takes its time to send: whoever waits for a first one
    must not wait behind all the others' next.
    """

    def __init__(self) -> None:
        self._ready: PriorityQueue[tuple[int, int, ResponseQueue | None]] = PriorityQueue()
        self._posts = count()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def outbox(self, reply: ResponseWriter) -> ResponseQueue:
        """A new request's way back."""
        return ResponseQueue(reply, self._post)

    def close(self) -> None:
        """Sends everything that waits, also what is posted meanwhile, then returns."""
        self._ready.put((_END, next(self._posts), None))
        self._thread.join()

    def _post(self, outbox: ResponseQueue) -> None:
        self._ready.put((_NEXT if outbox.sent else _FIRST, next(self._posts), outbox))

    def _run(self) -> None:
        while True:
            _, _, outbox = self._ready.get()
            if outbox is None:
                return
            try:
                outbox.flush()
            except Exception:  # one client's broken pipe must not silence the others
                log.exception("an answer could not be sent")
