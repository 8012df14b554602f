"""Each field of a request at its limit and far beyond it, for every endpoint. A new parameter needs no new line here.

A big body is uploaded first and its last byte sent later, so that the time to an answer is the server's alone.
"""

from __future__ import annotations

import base64
import http.client
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from captioner import wire
from captioner.errors import CaptionerError, from_wire
from captioner.examples import PHOTOS
from captioner.wire import MAX_IMAGE_BYTES, MAX_STOP_CHARACTERS, PARAMETERS, TEXT_LISTS, Parameter

PHOTO = PHOTOS[1].read_bytes()
FAR, FARTHER = 5 * 2**20, 20 * 10**6  # characters
MEMBERS, DEPTH = 10**6, 10**5
BODY = "body"
_SETTLE_S = 0.03  # until the server has read what was uploaded
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Field:
    """A field with values that may be accepted and values that must be refused."""

    name: str
    at_limit: tuple[Any, ...]
    beyond: tuple[Any, ...]


@dataclass(frozen=True)
class Reply:
    """`code` is "" for a caption; `seconds` do not count the upload."""

    code: str
    seconds: float
    message: str = ""


Send = Callable[[str, Any], Reply]


def fields() -> list[Field]:
    """Return all fields of the wire, and the body as a whole."""
    image = PHOTO + bytes(MAX_IMAGE_BYTES - len(PHOTO))
    bodies = (b"[" * DEPTH, b'{"a":' * DEPTH, b'{"image":"' + b"A" * 1000 + b'","seed":' + b"9" * FAR + b"}")
    return [
        Field("image", (image,), (image + b"\0", image + bytes(MAX_IMAGE_BYTES))),
        Field("prompt", ("é" * limit_of(wire.PROMPT),), ("x" * FAR, "é " * (FARTHER // 2))),
        *map(_field, PARAMETERS.values()),
        Field(BODY, (), bodies),
    ]


def texts_without_limit() -> list[str]:
    """Return the names of the texts whose length the wire does not limit."""
    texts: list[Parameter | wire.Tensor] = [wire.PROMPT]
    texts += [each for each in PARAMETERS.values() if each.kind is str]
    return [each.name for each in texts if each.max_length is None]


def limit_of(field: Parameter | wire.Tensor) -> int:
    """Return the maximum length of a text, in characters."""
    assert field.max_length is not None
    return field.max_length


def _field(parameter: Parameter) -> Field:
    if parameter.name in TEXT_LISTS:
        each = MAX_STOP_CHARACTERS if parameter.name == "stop" else limit_of(parameter) // 4 - len('"", ')
        nested: Any = "x"
        for _ in range(500):
            nested = [nested]
        beyond = (["x" * FAR], ["x"] * MEMBERS, nested, "[" * DEPTH, "[" * DEPTH + "]" * DEPTH)
        return Field(parameter.name, (["x" * each] * 4,), beyond)
    if parameter.kind is str:
        return Field(parameter.name, ("x" * limit_of(parameter),), ("x" * FAR,))
    if parameter.kind is bool:
        return Field(parameter.name, (bool(parameter.default),), ("true" * (FAR // 4),))
    assert parameter.maximum is not None
    largest = min(parameter.maximum, 2**63 - 1)  # of Triton's own protocol
    far = (parameter.maximum * 1000,) if parameter.maximum < largest / 1000 else ()
    return Field(parameter.name, (parameter.kind(largest),), (*far, "9" * FAR))


@contextmanager
def by_grpc(address: str) -> Iterator[Send]:
    """Yield a sender for Triton's gRPC stream. The time of the same bytes to an unknown model is subtracted."""
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def ask(request: pb.ModelInferRequest) -> tuple[float, str]:
            began = time.perf_counter()
            messages = [response.error_message for response in stub.ModelStreamInfer(iter([request]))]
            return time.perf_counter() - began, next(filter(None, messages), "")

        def send(name: str, value: Any) -> Reply:
            request = _grpc_request(name, value)
            seconds, message = ask(request)
            request.model_name = "unknown"
            return Reply(from_wire(message).code if message else "", max(seconds - ask(request)[0], 0), message)

        yield send


def _grpc_request(name: str, value: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=wire.CAPTIONER)
    tensors = {"image": PHOTO}
    parameters: dict[str, Any] = {"max_tokens": 2}
    if name in ("image", "prompt"):
        tensors[name] = value if isinstance(value, bytes) else value.encode()
    else:
        parameters |= {name: json.dumps(value) if isinstance(value, list) else value}
    for tensor, data in tensors.items():
        request.inputs.add(name=tensor, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(serialize_byte_tensor(np.array([data], dtype=np.object_)).item())
    for key, each in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(each)]
        setattr(request.parameters[key], kind, each)
    return request


def by_generate(address: str) -> Send:
    """Return a sender for Triton's HTTP endpoint, which takes no lists."""

    def send(name: str, value: Any) -> Reply:
        value = json.dumps(value) if isinstance(value, list) else value
        status, body, seconds = post(address, "/v2/models/captioner/generate", *_json(name, value))
        if status == 200:
            return Reply("", seconds)
        message = str(json.loads(body)["error"])
        error = from_wire(message)
        by_triton = type(error) is CaptionerError and not message.startswith(f"{error.code}: ")
        return Reply("TRITON_REFUSED" if by_triton else error.code, seconds, message)

    return send


def by_api(address: str, kind: Literal["json", "form", "chat"]) -> Send:
    """Return a sender for the HTTP API: captions in JSON or in a form, or a chat."""

    def send(name: str, value: Any) -> Reply:
        path = "/v1/chat/completions" if kind == "chat" else "/v1/captions"
        make = {"json": _json, "form": _form, "chat": _chat}[kind]
        try:
            status, body, seconds = post(address, path, *make(name, value))
        except ConnectionError:  # the API has refused a body over its limit without reading it
            return Reply("CONNECTION_RESET", 0.0)
        error = {} if status == 200 else json.loads(body)["error"]
        return Reply(error.get("code", ""), seconds, error.get("message", ""))

    return send


def _json(name: str, value: Any) -> tuple[bytes, str]:
    if name == BODY:
        return value, "application/json"
    document: dict[str, Any] = {"image": base64.b64encode(PHOTO).decode(), "max_tokens": 2}
    document[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return json.dumps(document, ensure_ascii=False).encode(), "application/json"


def _chat(name: str, value: Any) -> tuple[bytes, str]:
    if name == BODY:
        return value, "application/json"
    image = value if name == "image" else PHOTO
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
    ]
    if name == "prompt":
        content.append({"type": "text", "text": value})
    document = {"model": "captioner", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
    if name not in ("image", "prompt"):
        document[name] = value
    return json.dumps(document, ensure_ascii=False).encode(), "application/json"


def _form(name: str, value: Any) -> tuple[bytes, str]:
    if name == BODY:
        return value, "multipart/form-data; boundary=limit"
    values: dict[str, bytes] = {"image": PHOTO, "max_tokens": b"2"}
    text = json.dumps(value) if isinstance(value, list | bool) else str(value)
    values[name] = value if isinstance(value, bytes) else text.encode()
    body = b""
    for key, data in values.items():
        file = '; filename="a.jpg"' if key == "image" else ""
        body += f'--limit\r\nContent-Disposition: form-data; name="{key}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def post(address: str, path: str, body: bytes, media_type: str) -> tuple[int, bytes, float]:
    """Send a request; return status, body, and the seconds from its last byte, or from its head if it is not read."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\nConnection: close\r\n"
        began = time.perf_counter()
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        if _upload(connection, memoryview(body)[:-1]):
            time.sleep(_SETTLE_S)
            began = time.perf_counter()
            connection.sendall(body[-1:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        seconds = time.perf_counter() - began
        return response.status, response.read(), seconds


def _upload(connection: socket.socket, body: memoryview) -> bool:
    """Return whether all of it was sent; False once the server answers before it has read the body."""
    while body:
        readable, _, _ = select.select([connection], [connection], [], _TIMEOUT_S)
        if readable:
            return False
        try:
            body = body[connection.send(body[:65536]) :]
        except (ConnectionError, TimeoutError):
            return False
    return True
