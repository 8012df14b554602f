"""The default engine: captions from Triton servers, many requests in flight from this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from captioner.bulk.engines.base import RETRY_FOR_S, Outcome
from captioner.bulk.engines.concurrent import caption_all
from captioner.bulk.sources.item import Item
from captioner.client import DEFAULT_IN_FLIGHT, AsyncClient, RetryPolicy


class ServerEngine:
    """A BulkEngine over `server`: one address, or several separated by commas.

    At most `in_flight` images are held. Servers that are busy, restarting or away are retried for `retry_for_s`.
    """

    def __init__(
        self,
        server: str,
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        retry_for_s: float = RETRY_FOR_S,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._server, self._in_flight, self._retry = server, in_flight, RetryPolicy(retry_for_s)
        self._parameters = dict(parameters or {})

    async def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Yield the outcome of every item."""
        async with AsyncClient(self._server, retry=self._retry) as client:

            def caption(image: bytes, item: Item) -> Any:
                return client.caption(image, **item.parameters(self._parameters))

            async with aclosing(caption_all(items, self._in_flight, caption)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
