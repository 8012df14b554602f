"""The Hub's webhook: a POST with the secret wakes the follower, which then asks the Hub itself."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET_HEADER = "X-Webhook-Secret"


@contextmanager
def listening(host: str, port: int, secret: str, wake: threading.Event) -> Iterator[int]:
    """Listen on `port` (0 takes a free one), yield the port, and set `wake` for each POST that carries the secret.

    The body of a request is ignored.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            authorized = hmac.compare_digest(self.headers.get(SECRET_HEADER, "").encode(), secret.encode())
            if authorized:
                wake.set()
            self.send_response(204 if authorized else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Keep requests out of the log."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="webhook", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
