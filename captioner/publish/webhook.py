"""The Hub's webhook: whoever knows its secret wakes the follower, which then looks for itself."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET_HEADER = "X-Webhook-Secret"


@contextmanager
def listening(host: str, port: int, secret: str, wake: threading.Event) -> Iterator[int]:
    """Takes POSTs with the secret on `port` and sets `wake`; nothing in them is believed. Gives the port."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            known = hmac.compare_digest(self.headers.get(SECRET_HEADER, "").encode(), secret.encode())
            if known:
                wake.set()
            self.send_response(204 if known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing is written of who asks."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="webhook", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
