"""Responses leave through one thread, so that no decode step waits for a client.

Each call to Triton is a blocking round trip between processes (0.1 to 3 ms). The decode thread only appends token ids
to a request's response queue; ids that gather while a client is slow are sent as one piece of text.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

from captioner.errors import CaptionerError, traced
from captioner.serving.detokenizer import Detokenizer

log = logging.getLogger(__name__)


class ResponseWriter(Protocol):
    """Writes responses to one client. Every call may block; none is made after the final response."""

    def send(self, caption: str, details: str, final: bool) -> None:
        """Send new text. `details` is empty except in the final response."""

    def fail(self, error: CaptionerError) -> None:
        """Send an error as the final response."""

    def is_cancelled(self) -> bool:
        """Return whether the client has cancelled."""


FinalResponse = Callable[[ResponseWriter, str], None]  # gets the text not sent yet


class ResponseQueue:
    """What is still to be sent to one client. `finish` or `fail` closes it once; later calls are ignored."""

    def __init__(self, writer: ResponseWriter, schedule: Callable[[ResponseQueue], None]) -> None:
        self._writer: ResponseWriter | None = writer
        self._schedule = schedule
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held while the writer is called
        self._scheduled = False
        self._token_ids: list[int] = []
        self._final: FinalResponse | None = None
        self.first_token_sent = False
        self._detokenizer: Detokenizer | None = None
        self._streaming = False
        self._unsent = ""

    def open(self, detokenizer: Detokenizer, streaming: bool) -> None:
        """Set how ids become text. Call it before the first `put`."""
        self._detokenizer, self._streaming = detokenizer, streaming

    @property
    def text_ended_by(self) -> Literal["stop", "length", "repetition"] | None:
        """What ended the text before its last token, as far as it was flushed."""
        return None if self._detokenizer is None else self._detokenizer.finish_reason

    @property
    def has_first_token(self) -> bool:
        """Whether the next flush sends the first token."""
        return bool(self._token_ids) and not self.first_token_sent

    def put(self, token_id: int) -> None:
        """Append one token of the caption. Without streaming, nothing is sent before the end."""
        with self._lock:
            self._token_ids.append(token_id)
            if self._streaming:
                self._wake()

    def finish(self, details: Callable[[], str]) -> None:
        """Close with the caption; `details` is called when the final response is written."""
        self._close(lambda writer, text: writer.send(text, details(), True))

    def fail(self, error: CaptionerError) -> None:
        """Close with an error."""
        self._close(lambda writer, _: writer.fail(error))

    def is_cancelled(self) -> bool:
        """Return whether the client has cancelled. False after the final response: Triton has freed the request."""
        with self._writing:
            return self._writer is not None and self._writer.is_cancelled()

    def _close(self, final: FinalResponse) -> None:
        with self._lock:
            if self._final is None:
                self._final = final
                self._wake()

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self)

    def flush(self) -> None:
        """Send everything that has gathered. Runs on the sender's thread."""
        with self._lock:
            # The first token is sent alone: it is what the client waits for.
            count = 1 if self._streaming and not self.first_token_sent else len(self._token_ids)
            ids, self._token_ids = self._token_ids[:count], self._token_ids[count:]
            more = bool(self._token_ids)
            final = None if more else self._final
            self._scheduled = more
            self.first_token_sent = self.first_token_sent or bool(ids)
            if more:
                self._schedule(self)
        with self._writing:
            if self._writer is not None and self._write(self._writer, ids, final):
                # Release the writer now: collected while the interpreter exits, Triton's part of it blocks for ever.
                self._writer = None
            if self._writer is None:
                self._final = None  # the traceback of an error refers to the writer as well

    def _write(self, writer: ResponseWriter, ids: list[int], final: FinalResponse | None) -> bool:
        """Return whether the final response was sent."""
        try:
            if self._detokenizer is not None:
                self._unsent += self._detokenizer.push(ids, final=final is not None)
            if final is not None:
                final(writer, self._unsent)
            elif self._streaming and self._unsent:
                writer.send(self._unsent, "", False)
                self._unsent = ""
        except Exception as error:  # whatever failed, the client must get a final response
            log.error("a response could not be sent: %s", traced(error))
            with suppress(Exception):
                writer.fail(CaptionerError(f"{type(error).__name__}: {error}"))
            return True
        return final is not None


class ResponseSender:
    """The thread that flushes response queues.

    First tokens are sent before later ones: a step gives every running caption a token at the same time, and a client
    that waits for its first token must not wait behind the later tokens of all others. Responses without tokens, such
    as refusals, take every second turn: a flood of them does not starve captions, and captions do not starve them.
    """

    def __init__(self) -> None:
        self._first: deque[ResponseQueue] = deque()
        self._later: deque[ResponseQueue] = deque()
        self._tokenless: deque[ResponseQueue] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def queue(self, writer: ResponseWriter) -> ResponseQueue:
        """Return the response queue of a new request."""
        return ResponseQueue(writer, self._schedule)

    def close(self) -> None:
        """Send everything that is queued, also what is queued meanwhile, then return."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _schedule(self, queue: ResponseQueue) -> None:
        turn = self._first if queue.has_first_token else self._later if queue.first_token_sent else self._tokenless
        with self._changed:
            turn.append(queue)
            self._changed.notify()

    def _run(self) -> None:
        tokens_next = True
        while (queue := self._next(tokens_next)) is not None:
            tokens_next = not tokens_next
            try:
                queue.flush()
            except Exception as error:  # one client's broken connection must not stop the others
                log.error("a response could not be sent: %s", traced(error))

    def _next(self, tokens_next: bool) -> ResponseQueue | None:
        """Return the queue to flush, or None once everything is sent and the sender is closed."""
        with self._changed:
            while True:
                turns = [self._first, self._later]
                turns.insert(2 if tokens_next else 0, self._tokenless)
                for turn in turns:
                    if turn:
                        return turn.popleft()
                if self._closing:
                    return None
                self._changed.wait()
