"""The doors of one process: the page, what it is made of, and the HTTP API, over one client of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from captioner import photos
from captioner.client import Addresses, AsyncClient
from frontend import app as page
from frontend import look
from frontend.api import add_api
from frontend.card import ServedCard
from frontend.options import Options
from frontend.remote import RemoteImages
from frontend.tools import caption_tool


def application(addresses: Addresses, options: Options) -> FastAPI:
    """Everything, for the captioner server's replicas at `addresses`, up or not yet."""
    client = AsyncClient(addresses)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    images, served = RemoteImages(options.image_hosts), ServedCard(client)
    add_api(app, client, options, images, served)
    app.mount("/browser", StaticFiles(directory=look.BROWSER))
    app.mount("/examples", StaticFiles(directory=photos.FOLDER))
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
