"""An HTTP host of images that also redirects, stalls or sends without end."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.api_client import PHOTO

LOCAL = "127.0.0.1"
IMAGE = PHOTO.read_bytes()


class ImageHandler(BaseHTTPRequestHandler):
    """Answers /STATUS/REST: a redirect to REST, `endless`, `silent`, `missing`, or the image."""

    def __init__(self, asked: list[str], *arguments: object) -> None:
        self.asked = asked
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']}{self.path}")
        status, _, rest = self.path[1:].partition("/")
        if status.startswith("3"):
            self.send_response(int(status))
            self.send_header("Location", rest)
            self.end_headers()
        elif status == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"\xff" * 2**16)
        elif status == "silent":
            time.sleep(1)
        else:
            self.send_response(404 if status == "missing" else 200)
            self.end_headers()
            self.wfile.write(IMAGE)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class QuietServer(ThreadingHTTPServer):
    """Does not print an error when a client disconnects."""

    def handle_error(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def image_host(host: str = LOCAL, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Serve images; yield the port and the list of requests."""
    asked: list[str] = []
    server = QuietServer((host, port), partial(ImageHandler, asked))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
