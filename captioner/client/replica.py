"""One Triton server: its gRPC channel, the requests sent to it, and its streamed responses."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from captioner import wire
from captioner.errors import (
    AccessDenied,
    CaptionerError,
    DeadlineExceeded,
    RequestCancelled,
    ServerUnreachable,
    StreamStalled,
    from_wire,
)

TLS_SCHEME = "grpcs://"
COOLDOWN_S = 5.0  # after a failure, a replica is tried last for this long
# grpc.aio raises this instead of the call's status when the call ends while its request is written. So we write again.
WRITE_INTERRUPTED, MAX_WRITES, REWRITE_S = "Internal error from Core", 8, 0.02
DEADLINE_GRACE_S = 2.0  # after the deadline, the client gives up on a server that did not end the request itself
# By default, a channel to a server that was unreachable for a minute reconnects up to half a minute late.
RECONNECT = [("grpc.initial_reconnect_backoff_ms", 250), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True)
class Connection:
    """The connection options of all replicas.

    `stall_timeout_s`: a stream without a response for this long raises StreamStalled. Nothing else tells that a
    server's Python process died. `headers` are sent with every request, such as a proxy's authorization.
    `root_certificates`: the bytes of a PEM file that verifies `grpcs://` addresses; None selects gRPC's own.
    """

    stall_timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    root_certificates: bytes | None = None


class ResponseStream:
    """The responses to one request."""

    def __init__(self, call: Any, stall_timeout_s: float, replica: Replica) -> None:
        self._call = call
        self._stall_timeout_s = stall_timeout_s
        self._replica = replica
        self._address = replica.address
        replica.in_flight += 1
        call.add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        self._replica.in_flight -= 1

    async def read(self) -> dict[str, str] | None:
        """Return the next response, text by output name, or None at the end. Raises the error that ended the stream."""
        # asyncio.wait_for loses a cancellation that arrives together with the result, before Python 3.12.
        read = asyncio.ensure_future(self._call.read())
        try:
            done, _ = await asyncio.wait({read}, timeout=self._stall_timeout_s)
        except asyncio.CancelledError:  # of the caller's task
            self.cancel()
            raise
        if not done:
            self._call.cancel()
            raise StreamStalled(
                f"{self._address} sent nothing for {self._stall_timeout_s:g} s; the request was given up"
            )
        try:
            response = read.result()
        except asyncio.CancelledError:  # of the call: by `cancel`, or because the channel was closed
            raise RequestCancelled("the caption was cancelled") from None
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
        """Stop the work on the server. After the end this does nothing."""
        self._call.cancel()


class Replica:
    """One address, used from one event loop."""

    def __init__(self, address: str, connection: Connection) -> None:
        self.address = address
        self.in_flight = 0
        self._last_failure = float("-inf")
        self._connection = connection
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    @property
    def order(self) -> tuple[bool, int, float]:
        """Return a sort key: replicas that work first, then those with few requests in flight, then at random."""
        return time.monotonic() < self._last_failure + COOLDOWN_S, self.in_flight, random.random()

    def mark_failed(self) -> None:
        """Record a failure: other replicas are preferred for COOLDOWN_S."""
        self._last_failure = time.monotonic()

    async def send(
        self, inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object], deadline_s: float | None
    ) -> ResponseStream:
        """Send a request. Errors are raised here or by the first `read`."""
        request = infer_request(inputs, parameters)
        connection = self._connection
        metadata = [(name.lower(), value) for name, value in connection.headers.items()]
        timeout_s = None if deadline_s is None else max(deadline_s, 0) + DEADLINE_GRACE_S
        for writes_left in reversed(range(MAX_WRITES)):
            call = service_pb2_grpc.GRPCInferenceServiceStub(self._open()).ModelStreamInfer(
                timeout=timeout_s, metadata=metadata
            )
            try:
                await call.write(request)
                await call.done_writing()
            except asyncio.CancelledError:
                call.cancel()
                raise
            except grpc.RpcError as error:
                if writes_left and error.details() == WRITE_INTERRUPTED:
                    await asyncio.sleep(REWRITE_S)
                    continue
                raise _transport_error(error, self.address) from None
            except asyncio.InvalidStateError:  # the server answered before it had read the request; `read` tells why
                pass
            return ResponseStream(call, connection.stall_timeout_s, self)
        raise AssertionError("the last write returns or raises")

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise RequestCancelled("the client is closed")
        if self._channel is None:  # created here because grpc.aio binds a channel to the running loop
            if self.address.startswith(TLS_SCHEME):
                credentials = grpc.ssl_channel_credentials(self._connection.root_certificates)
                target = self.address.removeprefix(TLS_SCHEME)
                self._channel = grpc.aio.secure_channel(target, credentials, options=RECONNECT)
            else:
                self._channel = grpc.aio.insecure_channel(self.address, options=RECONNECT)
        return self._channel

    async def close(self) -> None:
        """Close the channel. Streams in progress end with RequestCancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


def infer_request(inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]) -> pb.ModelInferRequest:
    """Return the request in Triton's protocol, without the inputs and parameters that are None.

    The parameter `request_id` becomes Triton's id of the request. Raises ParameterUnknown or ParameterInvalid.
    """
    values = wire.encode_parameters(parameters)
    request_id = values.pop("request_id", None) or uuid.uuid4().hex
    wire.parse_parameters(values)
    request = pb.ModelInferRequest(model_name=wire.CAPTIONER, id=request_id)
    for name, text in inputs.items():
        if text is not None:
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            element = np.array([text.encode() if isinstance(text, str) else bytes(text)], dtype=np.object_)
            request.raw_input_contents.append(serialize_byte_tensor(element).item())
    for name, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, wire.as_int64(value) if kind == "int64_param" else value)
    return request


def _transport_error(error: grpc.RpcError, address: str) -> CaptionerError:
    code, details = error.code(), error.details() or ""
    # CANCELLED comes from the server or a proxy: grpc.aio reports the client's own cancel as asyncio.CancelledError.
    lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    if lost or (code is grpc.StatusCode.INTERNAL and details == WRITE_INTERRUPTED):
        return ServerUnreachable(f"no answer from {address}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{address} did not end at the deadline; the request was given up")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessDenied(f"{address} refuses: {details}")
    return from_wire(details)
