"""AsyncClient: captions from one or several Triton servers, over gRPC, from an event loop.

Requests fail over to another replica when one is down, overloaded or stalled. Captions are idempotent, so text that the
caller has read is not repeated. The module knows `captioner.wire`, not the models.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from typing_extensions import Self

from captioner import wire
from captioner.client.replica import Connection, Replica, infer_request
from captioner.client.retry import Outage, Retries, RetryPolicy, is_transient
from captioner.client.shrink import read_within_limits
from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError, ParameterInvalid, typed
from captioner.image.limits import check_file_size
from captioner.wire import Caption, ModelCard

ImageSource = bytes | str | PathLike[str]
Addresses = str | Sequence[str]  # HOST:PORT or grpcs://HOST:PORT; several in a list or separated by commas
DEFAULT_ADDRESS = f"127.0.0.1:{wire.GRPC_PORT}"
DEFAULT_IN_FLIGHT = 32


@dataclass(frozen=True)
class Captioned:
    """One image of many: its caption, or the error that prevented it."""

    image: ImageSource
    caption: Caption | None
    error: CaptionerError | None


class AsyncClient:
    """A client of the `captioner` model of one or several Triton servers, for one event loop.

    `addresses`: HOST:PORT of the gRPC endpoints, `grpcs://HOST:PORT` for TLS. By default a request fails when every
    replica has failed once; pass `retry=RetryPolicy(max_elapsed_s=120)` to wait for servers that restart.
    `shrink`: an image over the server's limits is sent as a smaller copy, and `details.image.shrunk_from` says so.
    `replica.Connection` documents the other options. Raises ParameterInvalid for no address.
    """

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
        self._shrink = shrink
        connection = Connection(stall_timeout_s, headers or {}, root_certificates)
        names = addresses.split(",") if isinstance(addresses, str) else addresses
        names = [name.strip() for name in names if name.strip()]
        if not names:
            raise ParameterInvalid(f"server is {addresses!r}; it must be HOST:PORT, or several separated by commas")
        self._replicas = [Replica(name, connection) for name in names]
        self._outage = Outage(retry)
        self._client_id = secrets.token_hex(8)

    @property
    def address(self) -> str:
        """Return the replicas' addresses, separated by commas."""
        return ",".join(replica.address for replica in self._replicas)

    async def stream(
        self, image: ImageSource, *, prompt: str | None = None, **parameters: object
    ) -> AsyncCaptionStream:
        """Send `image`, a file's bytes or path, and return without waiting for text.

        `parameters`: see `captioner.wire.PARAMETERS`, and `request_id`, the id of the request in Triton. Wrong ones
        raise ParameterUnknown, ParameterInvalid or PromptTooLong here; the server's errors are raised by the iteration.
        """
        return await self._start(
            {"image": await _bytes_of(image, self._shrink), "prompt": prompt}, {"stream": True} | parameters
        )

    async def caption(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> Caption:
        """Return the complete caption. Parameters and errors are those of `stream`."""
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
        """Yield every image's caption or error as it is ready, with `in_flight` requests at a time.

        `images` may be infinite: the next one is pulled when a request ends. An error does not end the other requests.
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
        """Return the card of the served model: name, revision, styles, lengths, limits. Fails over and retries."""
        retries = Retries(self._outage)
        while True:
            for replica in sorted(self._replicas, key=lambda replica: replica.order):
                try:
                    card = await _card(replica)
                except CaptionerError as error:
                    if not is_transient(error):
                        raise
                    replica.mark_failed()
                    failure = error
                else:
                    retries.progress()
                    return card
            if (wait_s := retries.wait_s()) is None:
                raise failure
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close the channels. Streams in progress end with RequestCancelled."""
        for replica in self._replicas:
            await replica.close()

    async def _start(
        self, inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]
    ) -> AsyncCaptionStream:
        if parameters.get("temperature") and parameters.get("seed") in (None, wire.DRAWN_SEED):
            parameters = {**parameters, "seed": secrets.randbits(32)}  # another replica must generate the same text
        if parameters.get("client_id") is None:
            parameters = {**parameters, "client_id": self._client_id}
        infer_request({}, parameters)  # raises for wrong parameters
        wire.check_prompt(str(inputs[wire.PROMPT.name] or ""))
        stream = AsyncCaptionStream(self._replicas, inputs, parameters, self._outage)
        await stream.start()
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _bytes_of(image: ImageSource, shrink: bool) -> bytes:
    if shrink:
        return await asyncio.to_thread(read_within_limits, image)
    if not isinstance(image, bytes):
        path = Path(image)
        check_file_size(path.stat().st_size)
        image = await asyncio.to_thread(path.read_bytes)
    check_file_size(len(image))
    return image


async def _card(replica: Replica) -> ModelCard:
    responses = await replica.send({}, {"describe": True}, None)
    outputs = await responses.read()
    if outputs is None:
        raise CaptionerError(f"{replica.address} ended the stream without a response")
    # Read to the end instead of cancelling: Triton 2.51 can crash when a cancel coincides with the last response.
    while await responses.read() is not None:
        pass
    return ModelCard.from_json(outputs[wire.DETAILS.name])
