"""Answers leave through one thread, so that no decode step ever waits for a client.

Telling Triton anything is a blocking round trip between processes (0.1 to 3 ms). The decode thread only drops token
ids into a request's outbox; what piles up there meanwhile leaves as one piece.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from captioner.errors import CaptionerError
from captioner.text import TextStream

log = logging.getLogger(__name__)


class Reply(Protocol):
    """The way back to one client; every call may block, and none is made after the final one."""

    def send(self, caption: str, details: str, final: bool) -> None:
        """Sends new text; `details` is empty but in the final response."""

    def fail(self, error: CaptionerError) -> None:
        """Sends an error as the final response."""

    def is_cancelled(self) -> bool:
        """Whether the client has left."""


class Outbox:
    """What one client is still to be told. Closed once, by `finish` or `fail`; what comes later is dropped."""

    def __init__(self, reply: Reply, post: Callable[[Outbox], None]) -> None:
        self.reply = reply
        self._post = post
        self._lock = threading.Lock()
        self._talking = threading.Lock()
        self._posted = False
        self._token_ids: list[int] = []
        self._close: Callable[[str], None] | None = None
        self._closed = False
        self._sent = False
        self._text: TextStream | None = None
        self._streaming = False
        self._unsent = ""

    def open(self, text: TextStream, streaming: bool) -> None:
        """Says how ids become text, before the first `put`."""
        self._text, self._streaming = text, streaming

    def put(self, token_id: int) -> None:
        """One more token of the caption."""
        with self._lock:
            self._token_ids.append(token_id)
            self._wake()

    def finish(self, details: Callable[[], str]) -> None:
        """The caption is whole; `details` is asked for at the last moment."""
        self._close_with(lambda text: self.reply.send(text, details(), True))

    def fail(self, error: CaptionerError) -> None:
        """There will be no (more) caption."""
        self._close_with(lambda _: self.reply.fail(error))

    def is_cancelled(self) -> bool:
        """Whether the client has left; never asked after the final response, when Triton has freed the request."""
        with self._talking:
            return not self._closed and self.reply.is_cancelled()

    def _close_with(self, close: Callable[[str], None]) -> None:
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
            count = len(self._token_ids) if self._sent else 1
            ids, self._token_ids = self._token_ids[:count], self._token_ids[count:]
            more = bool(self._token_ids)
            close = None if more else self._close
            self._posted = more
            if more:
                self._post(self)
        self._sent = self._sent or bool(ids)
        with self._talking:
            if not self._closed:
                self._tell(ids, close)

    def _tell(self, ids: list[int], close: Callable[[str], None] | None) -> None:
        self._closed = close is not None
        try:
            if self._text is not None:
                self._unsent += self._text.push(ids, final=self._closed)
            if close is not None:
                close(self._unsent)
            elif self._streaming and self._unsent:
                self.reply.send(self._unsent, "", False)
                self._unsent = ""
        except Exception as error:  # whatever failed, the client must hear of an end
            log.exception("an answer could not be sent")
            self._closed = True
            self.reply.fail(CaptionerError(f"{type(error).__name__}: {error}"))


class Sender:
    """The thread that flushes outboxes, in the order in which something happened to them."""

    def __init__(self) -> None:
        self._ready: SimpleQueue[Outbox | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def outbox(self, reply: Reply) -> Outbox:
        """A new request's way back."""
        return Outbox(reply, self._ready.put)

    def close(self) -> None:
        """Sends everything that waits, then returns."""
        self._ready.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            outbox = self._ready.get()
            if outbox is None:
                if self._ready.empty():
                    return
                self._ready.put(None)  # an outbox that had more to say stands behind the end
                continue
            try:
                outbox.flush()
            except Exception:  # one client's broken pipe must not silence the others
                log.exception("an answer could not be sent")
