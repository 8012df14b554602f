"""Client: the AsyncClient for code without an event loop. It runs a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from typing_extensions import Self

from captioner.client.async_client import (
    DEFAULT_ADDRESS,
    DEFAULT_IN_FLIGHT,
    Addresses,
    AsyncClient,
    Captioned,
    ImageSource,
)
from captioner.client.retry import RetryPolicy
from captioner.client.stream import AsyncCaptionStream
from captioner.errors import RequestCancelled
from captioner.wire import Caption, Details, ModelCard

T = TypeVar("T")


class CaptionStream(Iterator[str]):
    """A caption in progress. Iterate for its text. Leaving its `with` block cancels an unfinished caption."""

    def __init__(self, stream: AsyncCaptionStream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    @property
    def details(self) -> Details | None:
        """Return how the caption was generated; None until the iteration ends."""
        return self._stream.details

    def __next__(self) -> str:
        try:
            piece: str = self._run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None
        return piece

    def cancel(self) -> None:
        """Stop decoding on the server. After the end of the caption this does nothing."""

        async def cancel() -> None:
            self._stream.cancel()

        self._run(cancel())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """AsyncClient for code without an event loop. Threads may share it."""

    def __init__(
        self,
        addresses: Addresses = DEFAULT_ADDRESS,
        *,
        stall_timeout_s: float = 30.0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        root_certificates: bytes | None = None,
        shrink: bool = True,
    ) -> None:
        self._client = AsyncClient(
            addresses,
            stall_timeout_s=stall_timeout_s,
            retry=retry,
            headers=headers,
            root_certificates=root_certificates,
            shrink=shrink,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captioner-client", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """See AsyncClient.address."""
        return self._client.address

    def stream(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> CaptionStream:
        """See AsyncClient.stream."""
        return CaptionStream(self._run(self._client.stream(image, prompt=prompt, **parameters)), self._run)

    def caption(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> Caption:
        """See AsyncClient.caption."""
        return self._run(self._client.caption(image, prompt=prompt, **parameters))

    def caption_many(
        self,
        images: Iterable[ImageSource],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        prompt: str | None = None,
        **parameters: object,
    ) -> Iterator[Captioned]:
        """See AsyncClient.caption_many. `images` is iterated in the client's own thread."""
        captions = self._client.caption_many(images, in_flight=in_flight, prompt=prompt, **parameters)

        async def next_caption() -> Captioned | None:
            return await anext(captions, None)

        async def close() -> None:
            await captions.aclose()

        try:
            while (captioned := self._run(next_caption())) is not None:
                yield captioned
        finally:
            self._run(close())

    def describe(self) -> ModelCard:
        """See AsyncClient.describe."""
        return self._run(self._client.describe())

    def close(self) -> None:
        """Close the channels and stop the loop. Requests of other threads end with RequestCancelled."""

        async def close() -> None:
            await self._client.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}  # such as a wait before a retry
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if not self._loop.is_closed():
            self._run(close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RequestCancelled("the client was closed") from None
        except BaseException:  # such as Ctrl-C: the coroutine must not continue on its own
            future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
