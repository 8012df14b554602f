"""The HTTP API: two doors to a caption, what an orchestrator asks, and the middlewares around them.

It knows the client and no model; the page is mounted beside it.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from captioner.client import AsyncClient
from captioner.errors import CaptionerError, StreamStalled
from frontend.api import openapi
from frontend.api.captions import captions
from frontend.api.chat import chat
from frontend.http_errors import MethodRefused, PathUnknown, refusal
from frontend.middleware.auth import AuthMiddleware
from frontend.middleware.limits import LimitsMiddleware
from frontend.middleware.metrics import Metrics, MetricsMiddleware
from frontend.model_card_cache import ModelCardCache
from frontend.options import Options
from frontend.remote_images import RemoteImages

log = logging.getLogger(__name__)

READY_S = 2.0
PATHS = {"/v1/captions": "POST", "/v1/chat/completions": "POST", "/v1/models": "GET"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def add_api(
    app: FastAPI,
    client: AsyncClient,
    options: Options,
    images: RemoteImages | None = None,
    served: ModelCardCache | None = None,
) -> None:
    """Adds the API for the captioner server of `client` to `app`, and guards everything that `app` shows.

    To be called before a page is mounted at "/", which would take every path. `images` and `served` are made where
    nobody shares them.
    """
    gauges = Metrics()
    images = images or RemoteImages(options.image_hosts)
    doors = APIRouter()
    doors.include_router(captions(client, images))
    doors.include_router(chat(client, images, served or ModelCardCache(client)))
    document = openapi.document(doors, options.root_path)
    app.include_router(doors)
    app.include_router(_watch(client, gauges))
    app.add_api_route("/openapi.json", lambda: JSONResponse(document), include_in_schema=False)
    app.add_api_route("/v1/{path:path}", _refuse_path, methods=METHODS, include_in_schema=False)
    app.add_exception_handler(CaptionerError, _refuse)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(LimitsMiddleware, max_in_flight=options.max_in_flight)  # the last one added sees a request first
    if options.api_keys or options.auth:
        app.add_middleware(AuthMiddleware, options=options)
    app.add_middleware(MetricsMiddleware, gauges=gauges)


def _watch(client: AsyncClient, gauges: Metrics) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def alive() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @router.get("/readyz")
    async def ready() -> JSONResponse:
        try:
            card = await asyncio.wait_for(client.describe(), READY_S)
        except asyncio.TimeoutError:
            return JSONResponse({"status": StreamStalled.code}, 503)
        except CaptionerError as error:
            return JSONResponse({"status": error.code}, 503)
        return JSONResponse({"status": "ready", "model": card.model, "revision": card.revision})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(gauges.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _refuse_path(request: Request, path: str) -> Response:
    method = PATHS.get(f"/v1/{path}") or ("GET" if path.startswith("models/") else None)
    await request.body()
    if method is not None:
        return refusal(MethodRefused(f"{request.method} is not answered here; {method} is"), {"Allow": method})
    raise PathUnknown(f"/v1/{path[:80]} is not answered here; {', '.join(PATHS)} are")


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, CaptionerError)
    return refusal(error)


async def _fail(request: Request, error: Exception) -> Response:
    log.error("%s failed", request.url.path, exc_info=error)
    return refusal(CaptionerError("this is a fault of the server; its log says why"))
