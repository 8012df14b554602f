"""The doors of one process: the page, what it is made of, and the HTTP API, over one client of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from captioner import examples
from captioner.client import Addresses, AsyncClient
from frontend.api.routes import add_api
from frontend.mcp import caption_tool
from frontend.model_card_cache import ModelCardCache
from frontend.options import Options
from frontend.page import page, theme
from frontend.remote_images import RemoteImages


def application(addresses: Addresses, options: Options) -> FastAPI:
    """Everything, for the captioner server's replicas at `addresses`, up or not yet."""
    client = AsyncClient(addresses)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    images, served = RemoteImages(options.image_hosts), ModelCardCache(client)
    add_api(app, client, options, images, served)
    app.mount("/browser", StaticFiles(directory=theme.BROWSER))
    app.mount("/examples", StaticFiles(directory=examples.FOLDER))
    page.mount(app, served, options.root_path, caption_tool(client, images) if options.mcp else None)
    return app


def serve(addresses: Addresses, options: Options, host: str, port: int, tls: tuple[str, str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM; `tls` is (certificate, key), files in PEM."""
    certificate, key = tls or (None, None)
    uvicorn.run(
        application(addresses, options),
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
