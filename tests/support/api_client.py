"""What tests ask the API with, and how they read its refusals."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx

from captioner.errors import ServerStopping
from captioner.examples import FOLDER

PHOTO = FOLDER / "cat.jpg"
BASE64 = base64.b64encode(PHOTO.read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"
CAPTIONS, CHAT = "/v1/captions", "/v1/chat/completions"


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def send(url: str, body: dict[str, Any], path: str = CAPTIONS) -> socket.socket:
    """A request whose answer is not read."""
    data = json.dumps(body).encode()
    connection = connect(url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def soon(claim: Callable[[], bool], within_s: float = 5.0) -> bool:
    latest = time.monotonic() + within_s
    while not (held := claim()) and time.monotonic() < latest:
        time.sleep(0.01)
    return held


class Breaking:
    """A stream that breaks after its second piece, as one does whose server is stopped."""

    details = None

    def __init__(self) -> None:
        self.pieces = [" cat"]

    def __aiter__(self) -> Breaking:
        return self

    async def __anext__(self) -> str:
        if not self.pieces:
            raise ServerStopping("the server is stopping")
        return self.pieces.pop()
