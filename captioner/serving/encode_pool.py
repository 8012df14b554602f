"""Run a bounded number of encodings at a time, in the scheduler's order, and wait for none of them forever.

An encoding is a blocking call to other Triton models. It cannot be interrupted, and it never returns if their process
died. So each runs in a daemon thread of its own, and one that takes too long is abandoned: another takes its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class EncodePool(Generic[R]):
    """Calls `encode` for each request that `next_request` returns, at most `limit` at a time."""

    def __init__(self, limit: int, next_request: Callable[[], R | None], encode: Callable[[R], None]) -> None:
        self._limit = limit
        self._next_request = next_request
        self._encode = encode
        self._lock = threading.Lock()
        self._started: dict[R, float] = {}

    def dispatch(self) -> None:
        """Start encodings while there is room. Call it after a request was queued; it never blocks."""
        with self._lock:
            while len(self._started) < self._limit and (request := self._next_request()) is not None:
                self._started[request] = time.monotonic()
                threading.Thread(target=self._run, args=(request,), name="encode", daemon=True).start()

    def abandon(self, timeout_s: float) -> list[R]:
        """Return the requests whose encoding has taken longer than `timeout_s`, once each, and give up their room."""
        begun_before = time.monotonic() - timeout_s
        with self._lock:
            stalled = [request for request, started in self._started.items() if started < begun_before]
            for request in stalled:
                del self._started[request]
        if stalled:
            self.dispatch()
        return stalled

    def _run(self, request: R) -> None:
        try:
            self._encode(request)
        finally:
            with self._lock:
                self._started.pop(request, None)
            self.dispatch()
