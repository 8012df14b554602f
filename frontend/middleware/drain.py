"""The requests in flight, and the end of the process: what is in flight finishes, and nothing new begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from captioner.errors import ServerStopping
from frontend.middleware.exchange import Exchange


class Drain:
    """The exchanges of one process. `begun` is True once new requests are refused."""

    def __init__(self) -> None:
        self.begun = False
        self._exchanges: set[Exchange] = set()

    @contextmanager
    def track(self, exchange: Exchange) -> Iterator[None]:
        """Count an exchange as in flight inside the block."""
        self._exchanges.add(exchange)
        try:
            yield
        finally:
            self._exchanges.discard(exchange)

    def is_busy(self, *, awaited: bool = False) -> bool:
        """Return whether exchanges are in flight, or `awaited` ones such as captions."""
        return any(exchange.limits.is_awaited or not awaited for exchange in self._exchanges)

    def end(self) -> None:
        """End every exchange in flight with ServerStopping."""
        for exchange in list(self._exchanges):
            exchange.cancel(ServerStopping("the server is stopping; retry at another replica"))
