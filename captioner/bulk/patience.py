"""A client that waits for servers that are busy, restarting or away for a while."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

from captioner.client import AsyncClient, Caption
from captioner.errors import CaptionerError

RETRY_FOR_S = 120.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0


class PatientClient:
    """Asks again, ever more slowly, until no image of the job has had a caption for `retry_for_s` seconds."""

    def __init__(self, client: AsyncClient, parameters: Mapping[str, Any], retry_for_s: float) -> None:
        self._client, self._parameters, self._retry_for_s = client, dict(parameters), retry_for_s
        self._last_caption = time.monotonic()  # of any: who comes later does not wait anew for a server that is gone

    async def caption(self, image: bytes) -> Caption:
        """The caption; raises what will not pass, and what has not passed in time."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                caption = await self._client.caption(image, **self._parameters)
            except CaptionerError as error:
                waited_s = time.monotonic() - self._last_caption
                if error.status != "UNAVAILABLE" or waited_s + wait_s > self._retry_for_s:
                    raise
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._last_caption = time.monotonic()
                return caption
