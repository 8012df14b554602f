"""The HTTP API on a local port, in a thread of the test process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from captioner.client import AsyncClient
from frontend.api.backend import Backend
from frontend.api.routes import add_api
from frontend.middleware.drain import Drain
from frontend.model_card_cache import ModelCardCache
from frontend.options import Options
from frontend.remote_images import RemoteImages
from frontend.server import http_server
from tests.support.served import Served

PAGE = "the page"
DEAD = "127.0.0.1:9"  # nothing listens there


@contextmanager
def api_server(address: str, options: Options | None = None, images: RemoteImages | None = None) -> Iterator[str]:
    """Serve an API for the captioner server at `address`; yield its URL."""
    app = FastAPI(openapi_url=None)
    options = options or Options()
    client = AsyncClient(address, shrink=False)
    images = images or RemoteImages(options.image_hosts)
    drain = add_api(app, Backend(client, images, ModelCardCache(client), options.aliases), options)
    app.mount("/", PlainTextResponse(PAGE))
    with application_server(app, drain, options) as url:
        yield url


@contextmanager
def application_server(app: FastAPI, drain: Drain, options: Options) -> Iterator[str]:
    """Serve an application; yield its URL."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # with another value, asyncio does not set TCP_NODELAY
    listener.bind(("127.0.0.1", 0))
    server = http_server(app, drain, options)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the API did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive(), "the API did not stop"


@pytest.fixture(scope="session")
def url(served: Served) -> Iterator[str]:
    """The API in front of the embedded model."""
    with api_server(served.grpc) as address:
        yield address


@pytest.fixture(scope="session")
def dead_url() -> Iterator[str]:
    """An API whose captioner server does not answer."""
    with api_server(DEAD) as address:
        yield address
