"""HTTP answers with ranges and faults over real sockets, and a note of each; what is answered is `hub_server`'s."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 1 << 16  # bytes that are written at once

# A status, or what becomes of the body: cut or reset in the middle, one bit wrong, silence from the middle on, drops.
Fault = int | Literal["cut", "reset", "wrong", "silent", "slow"]


@dataclass
class Planned:
    """A fault of the next `times` answers whose URL's path ends with `path`."""

    path: str
    fault: Fault
    times: int
    at: int | None  # byte of the body, its middle if None
    retry_after_s: int | None


@dataclass
class Asked:
    """A request, and the answer's status and bytes of body."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    token: str | None
    on_cdn: bool
    status: int = 0
    sent: int = 0


class Reply:
    """Writes the answer to one request."""

    def __init__(self, handler: _Handler, asked: Asked) -> None:
        self.asked = asked
        self._handler = handler

    def head(self, status: int, headers: Mapping[str, str], length: int = 0) -> None:
        """A status and its headers; `length` bytes follow."""
        self.asked.status = status
        self._handler.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """A refusal as the Hub words it."""
        self.head(status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def json(self, value: object, planned: Planned | None) -> None:
        """A whole answer of the API."""
        self.body(json.dumps(value).encode(), {"Content-Type": "application/json"}, planned)

    def body(self, data: bytes, headers: Mapping[str, str], planned: Planned | None) -> None:
        """All of `data`, or what the Range leaves of it, or what the fault makes of it."""
        fault = planned.fault if planned else ""
        if planned and isinstance(fault, int):
            wait = {} if planned.retry_after_s is None else {"Retry-After": str(planned.retry_after_s)}
            self.error(fault, "", "planned", wait)
            return
        status, start, ranged = 200, 0, {"Accept-Ranges": "bytes"}
        if self.asked.range:
            status, start = 206, int(self.asked.range.removeprefix("bytes=").split("-")[0])
            ranged["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        self.head(status, {**headers, **ranged}, len(rest))
        at = len(rest) // 2 if planned is None or planned.at is None else planned.at
        if fault == "wrong":
            rest = rest[:at] + bytes([rest[at] ^ 1]) + rest[at + 1 :]
        self._write(rest[:at], slow=fault == "slow")
        if fault in ("cut", "reset", "silent"):
            self._end(str(fault))
        else:
            self._write(rest[at:], slow=fault == "slow")

    def _write(self, data: bytes, *, slow: bool) -> None:
        piece = max(len(data) // 8, 1) if slow else PIECE
        for start in range(0, len(data), piece):
            if slow:
                time.sleep(0.05)
            self._handler.wfile.write(data[start : start + piece])
            self.asked.sent += len(data[start : start + piece])

    def _end(self, fault: str) -> None:
        if fault == "silent":
            self._handler.server.stopped.wait()
        if fault == "reset":  # SO_LINGER of no seconds: what is on its way is dropped
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.close_connection = True


class Server(ThreadingHTTPServer):
    """Gives each request to `answer`, until it is stopped."""

    daemon_threads = True

    def __init__(self, port: int, answer: Callable[[Reply, str], None], *, on_cdn: bool) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer, self.on_cdn = answer, on_cdn
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Ends every connection; new ones are refused."""
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        queried, ranged = parse_qs(url.query), self.headers.get("Range")
        asked = Asked(self.command, unquote(url.path), queried, ranged, token, self.server.on_cdn)
        self.server.answer(Reply(self, asked), url.path)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""
