"""Client and AsyncClient: an image in, text as it is written out, over Triton's gRPC stream.

`Client` is `AsyncClient` driven from a loop of its own, so there is one path to the server. Nothing here knows a
model; requests and answers are those of `captioner.wire`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor
from typing_extensions import Self

from captioner import wire
from captioner.errors import CaptionerError, RequestCancelled, ServerUnreachable, StreamStalled, from_wire
from captioner.image import check_file_size
from captioner.wire import Details, ModelCard

ImageSource = bytes | str | PathLike[str]
T = TypeVar("T")
# By default a channel asks a server that was away for a minute only half a minute after it came back.
RECONNECT = [("grpc.initial_reconnect_backoff_ms", 250), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True)
class Caption:
    """A whole caption and how it came to be."""

    text: str
    details: Details

    def __str__(self) -> str:
        return self.text


class AsyncCaptionStream:
    """One caption being written: iterate for its text; `details` is there once the iteration has ended."""

    def __init__(self, call: Any, stall_timeout_s: float, address: str) -> None:
        self.details: Details | None = None
        self._call = call
        self._stall_timeout_s = stall_timeout_s
        self._address = address
        self._cancelled = False

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            outputs = await self._read()
            if outputs is None:
                raise StopAsyncIteration
            if outputs.get(wire.DETAILS.name):
                self.details = Details.from_json(outputs[wire.DETAILS.name])
            if outputs.get(wire.CAPTION.name):
                return outputs[wire.CAPTION.name]

    async def _read(self) -> dict[str, str] | None:
        """The next response's texts by output name, None at the end of the stream."""
        # Not wait_for: before Python 3.12 it loses a cancellation that comes in the same turn as the result.
        read = asyncio.ensure_future(self._call.read())
        try:
            done, _ = await asyncio.wait({read}, timeout=self._stall_timeout_s)
            if not done:
                self.cancel()
                raise StreamStalled(
                    f"{self._address} sent nothing for {self._stall_timeout_s:g} s; the request was given up"
                )
            response = read.result()
        except asyncio.CancelledError:
            if self._cancelled:  # by its owner, who is to be told; a cancelled task is to end
                raise RequestCancelled("the caption was cancelled") from None
            self.cancel()
            raise
        except grpc.RpcError as error:
            raise _transport_error(error, self._address) from None
        if response is grpc.aio.EOF:
            return None
        if response.error_message:
            raise from_wire(response.error_message)
        contents = response.infer_response.raw_output_contents
        return {
            output.name: deserialize_bytes_tensor(content)[0].decode()
            for output, content in zip(response.infer_response.outputs, contents, strict=True)
        }

    def cancel(self) -> None:
        """Ends the decoding on the server; calling it after the end does nothing."""
        self._cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncClient:
    """Talks to the `captioner` model of one Triton server from one event loop.

    `stall_timeout_s`: a stream that is silent for this long raises StreamStalled; a server whose Python process died
    says nothing else.
    """

    def __init__(self, address: str = f"127.0.0.1:{wire.GRPC_PORT}", *, stall_timeout_s: float = 30.0) -> None:
        self.address = address
        self.stall_timeout_s = stall_timeout_s
        self._channel: grpc.aio.Channel | None = None

    async def stream(
        self, image: ImageSource, *, prompt: str | None = None, **parameters: object
    ) -> AsyncCaptionStream:
        """Sends `image` (a file's bytes or its path) and returns at once; refusals come with the first text.

        `parameters` are those of `captioner.wire.PARAMETERS`; a wrong one is refused here, before anything is sent.
        """
        if isinstance(image, bytes):
            data = image
        else:
            check_file_size(Path(image).stat().st_size)
            data = await asyncio.to_thread(Path(image).read_bytes)
        check_file_size(len(data))
        return await self._start({"image": data, "prompt": prompt}, {"stream": True} | parameters)

    async def caption(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> Caption:
        """The whole caption at once."""
        async with await self.stream(image, prompt=prompt, **{"stream": False} | parameters) as stream:
            text = "".join([piece async for piece in stream])
        if stream.details is None:
            raise CaptionerError(f"{self.address} ended the stream without details")
        return Caption(text, stream.details)

    async def describe(self) -> ModelCard:
        """What the server captions with: model, revision, styles, lengths, limits."""
        stream = await self._start({}, {"describe": True})
        outputs = await stream._read()
        if outputs is None:
            raise CaptionerError(f"{self.address} ended the stream without an answer")
        # To its end, not cancelled: Triton 2.51 can crash when a cancel meets the last response.
        while await stream._read() is not None:
            pass
        return ModelCard.from_json(outputs[wire.DETAILS.name])

    async def close(self) -> None:
        """Closes the channel; streams still open end."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _start(
        self, inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]
    ) -> AsyncCaptionStream:
        request = infer_request(inputs, parameters)
        if self._channel is None:  # made inside the running loop, which grpc.aio binds it to
            self._channel = grpc.aio.insecure_channel(self.address, options=RECONNECT)
        call = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelStreamInfer()
        try:
            await call.write(request)
            await call.done_writing()
        except grpc.RpcError as error:
            raise _transport_error(error, self.address) from None
        except asyncio.InvalidStateError:  # the server answered before it had read everything: the answer says why
            pass
        return AsyncCaptionStream(call, self.stall_timeout_s, self.address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def infer_request(inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]) -> pb.ModelInferRequest:
    """The request in Triton's protocol; None leaves an input or parameter out.

    Raises ParameterUnknown or ParameterInvalid before anything travels.
    """
    values = {name: value for name, value in parameters.items() if value is not None}
    for name in wire.TEXT_LISTS & values.keys():
        if isinstance(values[name], list | tuple):
            values[name] = json.dumps(values[name])
    wire.parse_parameters(values)
    request = pb.ModelInferRequest(model_name=wire.CAPTIONER, id=uuid.uuid4().hex)
    for name, text in inputs.items():
        if text is not None:
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            element = np.array([text.encode() if isinstance(text, str) else text], dtype=np.object_)
            request.raw_input_contents.append(serialize_byte_tensor(element).item())
    for name, value in values.items():
        field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], field, value)
    return request


def _transport_error(error: grpc.RpcError, address: str) -> CaptionerError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.CANCELLED:
        return RequestCancelled("the caption was cancelled")
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnreachable(f"no answer from {address}: {details}")
    return from_wire(details)


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

    def __init__(self, address: str = f"127.0.0.1:{wire.GRPC_PORT}", *, stall_timeout_s: float = 30.0) -> None:
        self._client = AsyncClient(address, stall_timeout_s=stall_timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captioner-client", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT of the server's gRPC door."""
        return self._client.address

    def stream(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> CaptionStream:
        """See AsyncClient.stream."""
        return CaptionStream(self._run(self._client.stream(image, prompt=prompt, **parameters)), self._run)

    def caption(self, image: ImageSource, *, prompt: str | None = None, **parameters: object) -> Caption:
        """See AsyncClient.caption."""
        return self._run(self._client.caption(image, prompt=prompt, **parameters))

    def describe(self) -> ModelCard:
        """See AsyncClient.describe."""
        return self._run(self._client.describe())

    def close(self) -> None:
        """Closes the channel and ends the loop; a second call does nothing."""
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
