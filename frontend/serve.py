"""The ASGI application and its server: the page, its static files and the HTTP API in one process."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from captioner import examples
from captioner.client import Addresses, AsyncClient
from frontend import private_log
from frontend.api.backend import Backend
from frontend.api.routes import add_api
from frontend.mcp import caption_tool
from frontend.middleware.drain import Drain
from frontend.model_card_cache import ModelCardCache
from frontend.options import Options
from frontend.page import page, theme
from frontend.remote_images import RemoteImages
from frontend.server import http_server
from frontend.uploads import Uploads


def application(addresses: Addresses, options: Options) -> tuple[FastAPI, Drain]:
    """Return the application for the captioner servers at `addresses`, which need not be up yet, and its drain."""
    client = AsyncClient(addresses, shrink=False)  # callers of the API shrink their own images

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    images, uploads = RemoteImages(options.image_hosts), Uploads() if options.mcp else None
    backend = Backend(client, images, ModelCardCache(client), options.aliases, uploads)
    drain = add_api(app, backend, options)
    app.mount("/browser", StaticFiles(directory=theme.BROWSER))
    app.mount("/examples", StaticFiles(directory=examples.FOLDER))
    tool = None if uploads is None else caption_tool(client, images, uploads)
    page.mount(app, backend.cards, options.root_path, image_urls=bool(options.image_hosts), tool=tool)
    return app, drain


def serve(addresses: Addresses, options: Options, port: int, tls: tuple[str, str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `tls` is (certificate, private key), paths of PEM files."""
    private_log.install()
    certificate, key = tls or (None, None)
    app, drain = application(addresses, options)
    server = http_server(app, drain, options, port=port, ssl_certfile=certificate, ssl_keyfile=key)
    gc.collect()
    gc.freeze()  # a full collection of the imported libraries stops every request for 130 ms
    with suppress(KeyboardInterrupt):
        server.run()
