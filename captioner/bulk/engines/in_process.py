"""The engine without Triton: the published model runs in this process, with the server's continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from captioner.bulk.engines.base import Outcome
from captioner.bulk.engines.concurrent import caption_all
from captioner.bulk.sources.item import Item
from captioner.client import DEFAULT_IN_FLIGHT
from captioner.client.shrink import with_original_size
from captioner.errors import StartupRefused
from captioner.wire import Caption

INSTALL = "pip install 'captioner[models,export]' onnxruntime"  # `captioner[server]` would bring Triton as well


class InProcessEngine:
    """A BulkEngine over the live version in `repository`. The model is loaded when the job begins.

    At most `in_flight` images are held in memory. Raises StartupRefused if packages are missing or the model cannot be
    loaded, and ArtefactBroken if `repository` holds no intact model.
    """

    def __init__(
        self, repository: Path, *, in_flight: int = DEFAULT_IN_FLIGHT, parameters: Mapping[str, Any] | None = None
    ) -> None:
        self._repository, self._in_flight = repository, in_flight
        self._parameters = dict(parameters or {})

    async def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Yield the outcome of every item."""
        try:
            from captioner.serving.in_process import InProcessModel
        except ImportError as error:
            raise StartupRefused(f"--engine in-process needs {error.name}; run: {INSTALL}") from error
        model = await asyncio.to_thread(InProcessModel, self._repository, self._in_flight)

        async def caption(image: bytes, item: Item) -> Caption:
            answer = await asyncio.wrap_future(model.submit(image, item.parameters(self._parameters)))
            return Caption(answer.text, with_original_size(answer.details, image))

        try:
            async with aclosing(caption_all(items, self._in_flight, caption)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        finally:
            await asyncio.to_thread(model.close)
