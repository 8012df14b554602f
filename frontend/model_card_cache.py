"""A short-lived cache of the served model's card, shared by the API and the page."""

from __future__ import annotations

import time

from captioner.client import AsyncClient
from captioner.errors import CaptionerError
from captioner.wire import ModelCard

MAX_AGE_S = 5.0  # a newly published version is noticed after this time at the latest


class ModelCardCache:
    """The served model's card, fetched again when it is older than MAX_AGE_S."""

    def __init__(self, client: AsyncClient) -> None:
        self.address = client.address
        self._client = client
        self._card: ModelCard | None = None
        self._fetched = 0.0

    async def fetch(self) -> ModelCard:
        """Return the current card. Raises what `AsyncClient.describe` raises."""
        self._card = await self._client.describe()
        self._fetched = time.monotonic()
        return self._card

    async def get(self) -> ModelCard:
        """Return the card, at most MAX_AGE_S old. Raises what `AsyncClient.describe` raises."""
        if self._card is None or time.monotonic() - self._fetched > MAX_AGE_S:
            return await self.fetch()
        return self._card

    async def last(self) -> ModelCard | None:
        """Return the card, or the last known card if the server is unreachable, or None."""
        try:
            return await self.get()
        except CaptionerError:
            return self._card
