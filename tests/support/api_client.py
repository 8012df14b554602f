"""Requests to the HTTP API and readers of its errors."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from starlette.responses import Response
from starlette.types import Message

from captioner.errors import ServerStopping
from captioner.examples import FOLDER

PHOTO = FOLDER / "cat.jpg"
BASE64 = base64.b64encode(PHOTO.read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"
CAPTIONS, CHAT = "/v1/captions", "/v1/chat/completions"
LONG = {"length": "long", "temperature": 2, "max_tokens": 60, "repetition_guard": False}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def send(
    url: str, body: dict[str, Any], path: str = CAPTIONS, headers: Mapping[str, str] | None = None
) -> socket.socket:
    """Send a request and return its connection, without reading the response."""
    data = json.dumps(body).encode()
    connection = connect(url)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def send_half(url: str, path: str = CAPTIONS) -> socket.socket:
    """Send a request with one byte of a body of 100, and return its connection."""
    connection = connect(url)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{".encode())
    return connection


def soon(claim: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Return whether `claim` becomes true within the time."""
    deadline = time.monotonic() + within_s
    while not (holds := claim()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds


class BreakingStream:
    """A caption stream that fails after its second piece, as when its server is stopped."""

    details = None

    def __init__(self) -> None:
        self.pieces = [" cat"]

    def __aiter__(self) -> BreakingStream:
        return self

    async def __anext__(self) -> str:
        if not self.pieces:
            raise ServerStopping("the server is stopping")
        return self.pieces.pop()

    async def __aenter__(self) -> BreakingStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def body_of(response: Response) -> str:
    """Return the body that a response sends."""
    parts: list[bytes] = []

    async def send(message: Message) -> None:
        parts.append(message.get("body", b""))

    async def receive() -> Message:
        raise AssertionError("a response reads nothing")

    await response({"type": "http"}, receive, send)
    return b"".join(parts).decode()
