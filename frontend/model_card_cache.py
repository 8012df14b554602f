"""The card of the model that is served, remembered for a moment: one for the API and the page alike."""

from __future__ import annotations

import time

from captioner.client import AsyncClient
from captioner.errors import CaptionerError
from captioner.wire import ModelCard

LIFE_S = 5.0  # how long another version may go unnoticed


class ModelCardCache:
    """The served model's card, asked for again when it has grown old."""

    def __init__(self, client: AsyncClient) -> None:
        self.address = client.address
        self._client = client
        self._card: ModelCard | None = None
        self._asked = 0.0

    async def ask(self) -> ModelCard:
        """The card as it is now; raises what `AsyncClient.describe` does."""
        self._card = await self._client.describe()
        self._asked = time.monotonic()
        return self._card

    async def get(self) -> ModelCard:
        """The card, which may be LIFE_S old; raises what `AsyncClient.describe` does."""
        if self._card is None or time.monotonic() - self._asked > LIFE_S:
            return await self.ask()
        return self._card

    async def last(self) -> ModelCard | None:
        """The card, or the last one where the server is away; None where it was never up."""
        try:
            return await self.get()
        except CaptionerError:
            return self._card
