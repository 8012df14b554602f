"""The behaviour of the Triton model `caption` without Triton: forward each request, answer it once, bound what waits.

The process of `caption` is small because this module imports no torch.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from captioner.errors import (
    CaptionerError,
    DeadlineExceeded,
    ParameterInvalid,
    RequestCancelled,
    ServerBusy,
    traced,
    typed,
)
from captioner.image.formats import check_wrapped_size
from captioner.wire import PROMPT, decode_prompt

log = logging.getLogger(__name__)

# Triton 2.51 gives each Python process 32 threads. A request to another model occupies one until it is answered. The
# rest is for responses.
MAX_FORWARDED = 24
MAX_BYTES = 256 * 2**20  # of all inputs; those of a forwarded request are held twice, and once in shared memory
_POLL_SECONDS = 0.2
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt

Parameters = dict[str, object]
Ask = Callable[[Parameters], Any]


def return_large_buffers() -> None:
    """Let malloc give buffers of 1 MiB and more back when they are freed: after a burst of images it kept them."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def check_input(name: str, data: bytes) -> None:
    """Raise ImageTooLarge or PromptTooLong as the captioner does, before the input waits and takes memory."""
    if name == PROMPT.name:
        decode_prompt(data)
    elif data:
        check_wrapped_size(len(data))


class Writer(Protocol):
    """Writes the one response of a request. Every call may block; none is made after the response."""

    def send(self, outputs: Any) -> None:
        """Send what the captioner answered."""

    def fail(self, error: CaptionerError) -> None:
        """Send an error."""

    def is_cancelled(self) -> bool:
        """Return whether the client has cancelled."""


class Forwarder:
    """Forwards up to MAX_FORWARDED requests at a time. `max_waiting` more wait in the order of their arrival.

    `count` is called with 1 for a request, and with -1 after its response. It is never called by two threads at once:
    that ended Triton 2.51 with a segmentation fault.
    """

    def __init__(self, max_waiting: int, count: Callable[[int], None]) -> None:
        self._max_waiting = max_waiting
        self._count = count
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._forwarded = 0
        self._bytes = 0
        self._threads = ThreadPoolExecutor(MAX_FORWARDED, "forward")
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self._poller.start()

    def handle(self, parameters: Parameters, size: int, ask: Ask, writer: Writer) -> None:
        """Answer through `writer` once, later. `ask` forwards the request with the parameters that it is given.

        `size`: of the inputs, in bytes. Raises ParameterInvalid or ServerBusy for a request that is not accepted.
        """
        if parameters.get("stream") is True:
            raise ParameterInvalid("stream is True; the model caption sends one response, the model captioner streams")
        with self._lock:
            if self._forwarded + len(self._waiting) >= MAX_FORWARDED + self._max_waiting:
                raise ServerBusy(
                    f"{MAX_FORWARDED} requests are being answered and the queue of {self._max_waiting} is full; "
                    "retry in 1000 ms"
                )
            if self._bytes + size > MAX_BYTES:
                raise ServerBusy(f"the requests in flight hold {MAX_BYTES // 2**20} MiB, the limit; retry in 1000 ms")
            self._count(1)
            self._bytes += size
            self._waiting.append(_Request({"stream": False, **parameters}, size, ask, writer))
        self._threads.submit(self._forward_next)

    def close(self) -> None:
        """Answer every request in flight, then stop all threads."""
        self._threads.shutdown()
        self._closed.set()
        self._poller.join()

    def _forward_next(self) -> None:
        with self._lock:
            if not self._waiting:  # the poller has answered it
                return
            request = self._waiting.popleft()
            self._forwarded += 1
        request.forward()
        with self._lock:
            self._forwarded -= 1
        self._leave(request)

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            try:
                self._poll_waiting()
            except Exception:  # the next poll must come
                log.exception("polling failed")

    def _poll_waiting(self) -> None:
        """Answer waiting requests whose client has left or whose deadline has passed."""
        for request in self._waiting.copy():
            with self._lock:  # no thread may answer the request while it is checked
                fault = request.fault() if request in self._waiting else None
                if fault:
                    self._waiting.remove(request)
            if fault:
                request.fail(fault)
                self._leave(request)

    def _leave(self, request: _Request) -> None:
        with self._lock:
            self._bytes -= request.size
            self._count(-1)


@dataclass(eq=False)
class _Request:
    parameters: Parameters
    size: int
    ask: Ask
    writer: Writer
    arrived: float = field(default_factory=time.monotonic)

    def forward(self) -> None:
        """Send what the captioner answers. Blocks until then."""
        try:
            self.writer.send(self.ask(self._current_parameters()))
        except Exception as error:
            self.fail(error)

    def fault(self) -> CaptionerError | None:
        """Return why no caption is needed any more, or None. Not to be called after the response."""
        if self.writer.is_cancelled():
            return RequestCancelled("the client cancelled the request")
        left_ms = self._left_ms()
        if left_ms is not None and left_ms <= 0:
            deadline = self.parameters["deadline_ms"]
            return DeadlineExceeded(f"the deadline of {deadline} ms passed before the request was forwarded")
        return None

    def fail(self, error: Exception) -> None:
        """Send an error, if a response can still be sent."""
        if not isinstance(error, CaptionerError):
            log.error("a request failed: %s", traced(error))
        with suppress(Exception):
            self.writer.fail(typed(error))

    def _left_ms(self) -> float | None:
        """Return what is left of the deadline; None without a deadline, or with one that the captioner refuses."""
        deadline = self.parameters.get("deadline_ms")
        if type(deadline) is not int or deadline < 1:
            return None
        return deadline - (time.monotonic() - self.arrived) * 1000

    def _current_parameters(self) -> Parameters:
        left_ms = self._left_ms()
        return self.parameters if left_ms is None else {**self.parameters, "deadline_ms": max(round(left_ms), 1)}
