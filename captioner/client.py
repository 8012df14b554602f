"""Client and AsyncClient: an image in, text as it is written out, over Triton's gRPC stream.

`Client` is `AsyncClient` driven from a loop of its own, so there is one path to the server. Nothing here knows a
model; requests and answers are those of `captioner.wire`.

With several replicas a request goes to the least busy one, and on to another where one is away, busy, stopping or
silent: captions are idempotent.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Self

from captioner import wire
from captioner.errors import CaptionerError, ParameterInvalid, typed
from captioner.image import check_file_size
from captioner.replica import Connection, Replica, infer_request
from captioner.stream import AsyncCaptionStream
from captioner.wire import Details, ModelCard

ImageSource = bytes | str | PathLike[str]
Addresses = str | Sequence[str]  # HOST:PORT of gRPC, or grpcs://HOST:PORT; several in a list or with commas
T = TypeVar("T")
DEFAULT_ADDRESS = f"127.0.0.1:{wire.GRPC_PORT}"
DEFAULT_IN_FLIGHT = 32


@dataclass(frozen=True)
class Caption:
    """A whole caption and how it came to be."""

    text: str
    details: Details

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Captioned:
    """One image of many: its caption, or the error that kept it from one."""

    image: ImageSource
    caption: Caption | None
    error: CaptionerError | None


class AsyncClient:
    """Talks to the `captioner` model of one or several Triton servers from one event loop.

    `addresses`: HOST:PORT of their gRPC doors, `grpcs://HOST:PORT` for TLS. The rest is `replica.Connection`'s.
    """

    def __init__(
        self,
        addresses: Addresses = DEFAULT_ADDRESS,
        *,
        stall_timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        root_certificates: bytes | None = None,
    ) -> None:
        connection = Connection(stall_timeout_s, headers or {}, root_certificates)
        names = addresses.split(",") if isinstance(addresses, str) else addresses
        names = [name.strip() for name in names if name.strip()]
        if not names:
            raise ParameterInvalid(f"server is {addresses!r}; it must be HOST:PORT, or several with commas between")
        self._replicas = [Replica(name, connection) for name in names]

    @property
    def address(self) -> str:
        """Where the replicas are."""
        return ",".join(replica.address for replica in self._replicas)

    async def stream(
        self, image: ImageSource, *, prompt: str | None = None, **parameters: object
    ) -> AsyncCaptionStream:
        """Sends `image` (a file's bytes or its path) and returns at once; refusals come with the first text.

        `parameters` are those of `captioner.wire.PARAMETERS`; a wrong one is refused here, before anything is sent.
        """
        return await self._start({"image": await _bytes_of(image), "prompt": prompt}, {"stream": True} | parameters)

    async def caption(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> Caption:
        """The whole caption at once."""
        async with await self.stream(image, prompt=prompt, **{"stream": False} | parameters) as stream:
            text = "".join([piece async for piece in stream])
        if stream.details is None:
            raise CaptionerError(f"{self.address} ended the stream without details")
        return Caption(text, stream.details)

    async def caption_many(
        self,
        images: Iterable[ImageSource],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        prompt: str | None = None,
        **parameters: object,
    ) -> AsyncGenerator[Captioned, None]:
        """Every image's caption or error as it is ready, `in_flight` asked for at once; one's error is not the others'.

        `images` may be endless: the next is taken when there is room for it.
        """

        async def one(image: ImageSource) -> Captioned:
            try:
                return Captioned(image, await self.caption(image, prompt=prompt, **parameters), None)
            except Exception as error:
                return Captioned(image, None, typed(error))

        waiting, running = iter(images), set[asyncio.Task[Captioned]]()
        try:
            while True:
                for image in itertools.islice(waiting, in_flight - len(running)):
                    running.add(asyncio.create_task(one(image)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def describe(self) -> ModelCard:
        """What a server captions with: model, revision, styles, lengths, limits."""
        replicas = sorted(self._replicas, key=lambda replica: replica.order)
        for at, replica in enumerate(replicas):
            try:
                return await _card(replica)
            except CaptionerError as error:
                replica.rest()
                if error.status != "UNAVAILABLE" or at == len(replicas) - 1:
                    raise
        raise AssertionError("there is at least one replica")

    async def close(self) -> None:
        """Closes the channels; streams still open end."""
        for replica in self._replicas:
            await replica.close()

    async def _start(
        self, inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]
    ) -> AsyncCaptionStream:
        if parameters.get("temperature") and parameters.get("seed") is None:
            parameters = {**parameters, "seed": secrets.randbits(32)}  # a second replica must write the same
        infer_request({}, parameters)  # refuses them here
        stream = AsyncCaptionStream(self._replicas, inputs, parameters)
        await stream.start()
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _bytes_of(image: ImageSource) -> bytes:
    if not isinstance(image, bytes):
        path = Path(image)
        check_file_size(path.stat().st_size)
        image = await asyncio.to_thread(path.read_bytes)
    check_file_size(len(image))
    return image


async def _card(replica: Replica) -> ModelCard:
    answer = await replica.ask({}, {"describe": True}, None)
    outputs = await answer.read()
    if outputs is None:
        raise CaptionerError(f"{replica.address} ended the stream without an answer")
    # To its end, not cancelled: Triton 2.51 can crash when a cancel meets the last response.
    while await answer.read() is not None:
        pass
    return ModelCard.from_json(outputs[wire.DETAILS.name])


class CaptionStream(Iterator[str]):
    """One caption being written; iterate for its text. Leaving its `with` block cancels what is unfinished."""

    def __init__(self, stream: AsyncCaptionStream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    @property
    def details(self) -> Details | None:
        """How the caption came to be; None until the iteration has ended."""
        return self._stream.details

    def __next__(self) -> str:
        try:
            piece: str = self._run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None
        return piece

    def cancel(self) -> None:
        """Ends the decoding on the server; calling it after the end does nothing."""

        async def cancel() -> None:
            self._stream.cancel()

        self._run(cancel())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """The same client for code without an event loop; safe to share between threads."""

    def __init__(
        self,
        addresses: Addresses = DEFAULT_ADDRESS,
        *,
        stall_timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        root_certificates: bytes | None = None,
    ) -> None:
        self._client = AsyncClient(
            addresses, stall_timeout_s=stall_timeout_s, headers=headers, root_certificates=root_certificates
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
        """See AsyncClient.caption_many. `images` is asked for its next from the client's own thread."""
        captions = self._client.caption_many(images, in_flight=in_flight, prompt=prompt, **parameters)

        async def following() -> Captioned | None:
            return await anext(captions, None)

        async def close() -> None:
            await captions.aclose()

        try:
            while (captioned := self._run(following())) is not None:
                yield captioned
        finally:
            self._run(close())

    def describe(self) -> ModelCard:
        """See AsyncClient.describe."""
        return self._run(self._client.describe())

    def close(self) -> None:
        """Closes the channels and ends the loop; a second call does nothing."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while waiting: what runs in the loop must not go on alone
            future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
