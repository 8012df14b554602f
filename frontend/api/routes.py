"""The HTTP API: one router with every endpoint, health checks and metrics beside it, and the middlewares around both.

To add an endpoint, write a function like `add_captions` and name it in `APIS`. The middlewares get the router's routes,
so the endpoint has the request limits and the metrics at any path. This module knows the client and no model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from captioner.client import AsyncClient
from captioner.errors import CaptionerError, ServerStopping, StreamStalled
from captioner.wire import ModelCard
from frontend.api import openapi
from frontend.api.azure import add_azure, azure_error
from frontend.api.backend import Backend
from frontend.api.captions import add_captions
from frontend.api.chat import add_chat
from frontend.api.containers import add_sagemaker, vertex
from frontend.api.huggingface import add_huggingface, huggingface_error
from frontend.api.models import add_models
from frontend.api.ollama import add_ollama, ollama_error
from frontend.api.openai_responses import add_responses
from frontend.api.uploads import add_uploads
from frontend.client_identity import request_id
from frontend.http_errors import ErrorBody, MethodRefused, PathUnknown, error_body, error_response
from frontend.middleware.asgi import METRICS, match_route
from frontend.middleware.auth import AuthMiddleware
from frontend.middleware.drain import Drain
from frontend.middleware.error_format import ErrorFormatMiddleware, ErrorFormats
from frontend.middleware.limits import LimitsMiddleware
from frontend.middleware.metrics import Metrics, MetricsMiddleware
from frontend.middleware.origin import OriginMiddleware
from frontend.middleware.request_id import RequestIdMiddleware
from frontend.options import API_NAMES, Options

log = logging.getLogger(__name__)

READY_S = 2.0  # time limit of a readiness check
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
READ = METHODS[:2]


@dataclass(frozen=True)
class Api:
    """A group of endpoints: the functions that add them to the router, and their format of errors."""

    endpoints: tuple[Callable[[APIRouter, Backend], None], ...]
    error_body: ErrorBody = error_body


APIS: dict[str, Api] = {  # by their names in Options.apis
    "captions": Api((add_captions, add_models)),
    "openai": Api((add_chat, add_responses)),
    "ollama": Api((add_ollama,), ollama_error),
    "huggingface": Api((add_huggingface,), huggingface_error),
    "azure": Api((add_azure,), azure_error),
    "sagemaker": Api((add_sagemaker,)),
}
assert tuple(APIS) == API_NAMES


def api_router(backend: Backend, options: Options) -> tuple[APIRouter, ErrorFormats]:
    """Return the router with the endpoints of `options.apis`, and each route's error format.

    A route's name is its label in the metrics.
    """
    router, formats = APIRouter(), ErrorFormats()
    apis = [APIS[name] for name in options.apis]
    if options.vertex_predict:
        apis.append(Api((vertex(options.vertex_predict),)))
    if backend.uploads is not None:
        apis.append(Api((add_uploads,)))
    for api in apis:
        known = len(router.routes)
        for add in api.endpoints:
            add(router, backend)
        for route in [each for each in router.routes[known:] if isinstance(each, APIRoute)]:
            formats.append((route, api.error_body))
            if "GET" in (route.methods or ()):
                router.add_api_route(
                    route.path, route.endpoint, methods=["HEAD"], name=route.name, include_in_schema=False
                )
    endpoints = list(router.routes)

    async def refuse(request: Request, path: str) -> Response:
        route = match_route(endpoints, request.scope)
        if isinstance(route, APIRoute):
            allowed = ", ".join(sorted(route.methods or ()))
            error = MethodRefused(f"{request.method} is not supported here; {allowed} is")
            return error_response(error, {"Allow": allowed})
        known = ", ".join(dict.fromkeys(route.path_format for route in endpoints if isinstance(route, APIRoute)))
        raise PathUnknown(f"/v1/{path[:80]} does not exist; the endpoints are {known}")

    router.add_api_route("/v1/{path:path}", refuse, methods=METHODS, name="none", include_in_schema=False)
    return router, formats


def add_api(app: FastAPI, backend: Backend, options: Options) -> Drain:
    """Add the API to `app`, and access checks and limits for all that it serves.

    Returns what a server needs to stop without cutting requests. Call it before a page is mounted at "/", because that
    mount matches every path.
    """
    metrics, drain = Metrics(), Drain()
    router, formats = api_router(backend, options)
    document = openapi.document(router, options.root_path)
    app.include_router(_operations(backend.client, metrics, drain, options.ready_paths))
    app.include_router(router)
    app.add_api_route("/openapi.json", lambda: JSONResponse(document), include_in_schema=False)
    app.add_exception_handler(CaptionerError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)
    # The middleware that is added last sees a request first.
    app.add_middleware(LimitsMiddleware, routes=router.routes, options=options, drain=drain)
    if options.has_login:
        app.add_middleware(AuthMiddleware, options=options)
    app.add_middleware(OriginMiddleware, options=options)
    app.add_middleware(MetricsMiddleware, routes=router.routes, metrics=metrics)
    app.add_middleware(ErrorFormatMiddleware, formats=formats)
    app.add_middleware(RequestIdMiddleware)
    return drain


def _operations(client: AsyncClient, metrics: Metrics, drain: Drain, ready_paths: Sequence[str]) -> APIRouter:
    """Return the endpoints for orchestrators. They are outside the API's limits, so they answer under full load."""
    router = APIRouter(include_in_schema=False)
    asked: asyncio.Future[ModelCard] | None = None  # concurrent readiness checks share one request

    @router.api_route("/healthz", methods=READ)
    async def alive() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    async def ready() -> JSONResponse:
        nonlocal asked
        if drain.begun:
            return JSONResponse({"status": ServerStopping.code}, 503, {"Connection": "close"})
        if asked is None or asked.done():
            asked = asyncio.ensure_future(client.describe())
        await asyncio.wait({asked}, timeout=READY_S)
        if not asked.done() or asked.cancelled():
            asked.cancel()
            return JSONResponse({"status": StreamStalled.code}, 503)
        try:
            card = asked.result()
        except CaptionerError as error:
            return JSONResponse({"status": error.code}, 503)
        return JSONResponse({"status": "ready", "model": card.model, "revision": card.revision})

    for path in ready_paths:
        router.add_api_route(path, ready, methods=READ)

    @router.api_route(METRICS, methods=READ)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, CaptionerError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Return the error for an unknown path or method of a static file or of a route outside the API."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(PathUnknown(f"{request.url.path[:80]!r} does not exist"))
    if error.status_code == 405:
        return error_response(MethodRefused(f"{request.method} is not supported here"), dict(error.headers or {}))
    return await http_exception_handler(request, error)


async def _on_fault(request: Request, error: Exception) -> Response:
    log.error("%s failed, request %s", request.url.path, request_id(), exc_info=error)
    return error_response(CaptionerError("the server failed; its log has the cause"))
