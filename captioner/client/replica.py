"""One Triton server as a client sees it: its gRPC channel, requests to it, and the answers as they come."""

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
REST_S = 5.0  # how long a replica that failed is the last to be asked
# What grpc.aio says, in place of the status, where a call ends while its request is being written: asked again for it.
BROKE_OFF, WRITE_TRIES = "Internal error from Core", 4
LATE_S = 2.0  # how long after its deadline a request is given up here, where the server did not
# By default a channel asks a server that was away for a minute only half a minute after it came back.
RECONNECT = [("grpc.initial_reconnect_backoff_ms", 250), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True)
class Connection:
    """How replicas are talked to.

    `stall_timeout_s`: an answer that is silent for this long raises StreamStalled; a server whose Python process died
    says nothing else. `headers` go with every request, as a proxy's authorization. `root_certificates`: the PEM
    file's bytes that a `grpcs://` address is checked with; None takes gRPC's own.
    """

    stall_timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    root_certificates: bytes | None = None


class Answer:
    """One request being answered: `read` gives the responses' texts by output name."""

    def __init__(self, call: Any, stall_timeout_s: float, replica: Replica) -> None:
        self._call = call
        self._stall_timeout_s = stall_timeout_s
        self._replica = replica
        self._address = replica.address
        self._cancelled = False
        replica.in_flight += 1
        call.add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        self._replica.in_flight -= 1

    async def read(self) -> dict[str, str] | None:
        """The next response, None at the end. Raises what the server or the way to it answers."""
        # Not wait_for: before Python 3.12 it loses a cancellation that comes in the same turn as the result.
        read = asyncio.ensure_future(self._call.read())
        try:
            done, _ = await asyncio.wait({read}, timeout=self._stall_timeout_s)
            if not done:
                self._call.cancel()
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
        """Ends the work on the server; calling it after the end does nothing."""
        self._cancelled = True
        self._call.cancel()


class Replica:
    """One address. Used from one event loop."""

    def __init__(self, address: str, connection: Connection) -> None:
        self.address = address
        self.in_flight = 0
        self._failed = float("-inf")
        self._connection = connection
        self._channel: grpc.aio.Channel | None = None

    @property
    def order(self) -> tuple[bool, int, float]:
        """Whom to ask first: those that work, the least busy of them, any of these."""
        return time.monotonic() < self._failed + REST_S, self.in_flight, random.random()

    def rest(self) -> None:
        """It failed: others go first for a while."""
        self._failed = time.monotonic()

    async def ask(
        self, inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object], deadline_s: float | None
    ) -> Answer:
        """Sends a request; refusals and failures may come here or with the first response."""
        request = infer_request(inputs, parameters)
        connection = self._connection
        metadata = [(name.lower(), value) for name, value in connection.headers.items()]
        timeout_s = None if deadline_s is None else max(deadline_s, 0) + LATE_S
        for tries_left in reversed(range(WRITE_TRIES)):
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
                if tries_left and error.details() == BROKE_OFF:
                    continue
                raise _transport_error(error, self.address) from None
            except asyncio.InvalidStateError:  # the server answered before it had read everything: the answer says why
                pass
            return Answer(call, connection.stall_timeout_s, self)
        raise AssertionError("the last try returns or raises")

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:  # made inside the running loop, which grpc.aio binds it to
            if self.address.startswith(TLS_SCHEME):
                credentials = grpc.ssl_channel_credentials(self._connection.root_certificates)
                target = self.address.removeprefix(TLS_SCHEME)
                self._channel = grpc.aio.secure_channel(target, credentials, options=RECONNECT)
            else:
                self._channel = grpc.aio.insecure_channel(self.address, options=RECONNECT)
        return self._channel

    async def close(self) -> None:
        """Closes the channel; answers still open end."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


def infer_request(inputs: Mapping[str, bytes | str | None], parameters: Mapping[str, object]) -> pb.ModelInferRequest:
    """The request in Triton's protocol; None leaves an input or parameter out.

    Raises ParameterUnknown or ParameterInvalid before anything travels.
    """
    values = wire.sent(parameters)
    wire.parse_parameters(values)
    request = pb.ModelInferRequest(model_name=wire.CAPTIONER, id=uuid.uuid4().hex)
    for name, text in inputs.items():
        if text is not None:
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            element = np.array([text.encode() if isinstance(text, str) else text], dtype=np.object_)
            request.raw_input_contents.append(serialize_byte_tensor(element).item())
    for name, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def _transport_error(error: grpc.RpcError, address: str) -> CaptionerError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.CANCELLED:
        return RequestCancelled("the caption was cancelled")
    if code is grpc.StatusCode.UNAVAILABLE or (code is grpc.StatusCode.INTERNAL and details == BROKE_OFF):
        return ServerUnreachable(f"no answer from {address}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{address} did not end at the deadline; the request was given up")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessDenied(f"{address} refuses: {details}")
    return from_wire(details)
