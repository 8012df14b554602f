"""HTTP responses with ranges and injected faults over real sockets, for `hub_server`; each request is recorded."""

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

PIECE = 1 << 16  # bytes per write

# A status, or a fault of the body: cut or reset in the middle, one wrong bit, no data after the middle, slow writes.
Fault = int | Literal["cut", "reset", "wrong", "silent", "slow"]


@dataclass
class Planned:
    """A fault of the next `times` responses whose URL path ends with `path`."""

    path: str
    fault: Fault
    times: int
    at: int | None  # offset in the body; None means its middle
    retry_after_s: int | None


@dataclass
class Asked:
    """A request, and the status and body bytes of its response."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    token: str | None
    on_cdn: bool
    status: int = 0
    sent: int = 0


class Reply:
    """Writes the response to one request."""

    def __init__(self, handler: _Handler, asked: Asked) -> None:
        self.asked = asked
        self._handler = handler

    def head(self, status: int, headers: Mapping[str, str], length: int = 0) -> None:
        """Send the status line and the headers of a body of `length` bytes."""
        self.asked.status = status
        self._handler.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an error with the Hub's headers."""
        self.head(status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def json(self, value: object, planned: Planned | None) -> None:
        """Send a JSON response of the API."""
        self.body(json.dumps(value).encode(), {"Content-Type": "application/json"}, planned)

    def body(self, data: bytes, headers: Mapping[str, str], planned: Planned | None) -> None:
        """Send `data`, or its requested range, with the planned fault."""
        fault = planned.fault if planned else ""
        if planned and isinstance(fault, int):
            wait = {} if planned.retry_after_s is None else {"Retry-After": str(planned.retry_after_s)}
            self.error(fault, "", "planned", wait)
            return
        status, rest, ranged = 200, data, {"Accept-Ranges": "bytes"}
        if self.asked.range:
            first, _, last = self.asked.range.removeprefix("bytes=").partition("-")
            status, start, end = 206, int(first), min(int(last or len(data)), len(data) - 1)
            rest = data[start : end + 1]
            ranged["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
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
        if fault == "reset":  # SO_LINGER of 0 s: unsent data is dropped
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.close_connection = True


class Server(ThreadingHTTPServer):
    """Passes each request to `answer` until it is stopped."""

    daemon_threads = True

    def __init__(self, port: int, answer: Callable[[Reply, str], None], *, on_cdn: bool) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer, self.on_cdn = answer, on_cdn
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """End every connection; refuse new ones."""
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect: tests do it on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response waits 40 ms for an acknowledgement

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
        """Log nothing."""
