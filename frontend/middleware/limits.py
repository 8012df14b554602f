"""Request limits of every route: body size, concurrency by client, and the memory of all bodies together."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from captioner.errors import ServerStopping
from captioner.wire import MAX_IMAGE_BYTES
from frontend.client_identity import client_of
from frontend.http_errors import error_response
from frontend.middleware.asgi import MCP_PATHS, METRICS, match_route, path_of
from frontend.middleware.drain import Drain
from frontend.middleware.exchange import Exchange, Limits
from frontend.middleware.share import Share
from frontend.options import Options

MAX_TEXT_BYTES = 2**20  # of all fields other than the image
MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + MAX_TEXT_BYTES  # the image as base64
MAX_PAGE_BODY_BYTES = 2**16  # of the page's own requests, which carry no image
MAX_PAGE_IN_FLIGHT = 256
MAX_HELD_BYTES = 2**28  # bodies of all requests in flight
READING_PER_REQUEST = 4  # bodies that may arrive for each request in flight


class LimitsMiddleware:
    """ASGI middleware that limits all requests. `routes` and MCP take images; all other routes take small bodies.

    Health checks and metrics have no concurrency limit, so they answer under full load. They read no body.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], options: Options, drain: Drain) -> None:
        self.app = app
        self._routes = routes
        self._unlimited = options.health_paths | {METRICS}
        self._drain = drain
        held = Share(MAX_HELD_BYTES)
        reading = Share(READING_PER_REQUEST * options.max_in_flight)
        hint = f"; the limit of an image is {MAX_IMAGE_BYTES >> 20} MiB"
        self._api = Limits(Share(options.max_in_flight), reading, held, MAX_BODY_BYTES, hint)
        in_flight = Share(MAX_PAGE_IN_FLIGHT)
        self._page = Limits(in_flight, Share(MAX_PAGE_IN_FLIGHT), held, MAX_PAGE_BODY_BYTES, is_awaited=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else None
        if path is None or path in self._unlimited:
            return await self.app(scope, receive, send)
        if self._drain.begun:
            error = ServerStopping("the server is stopping; retry at another replica")
            return await error_response(error, {"Connection": "close"})(scope, receive, send)
        takes_images = match_route(self._routes, scope) is not None or (path in MCP_PATHS and scope["method"] == "POST")
        exchange = Exchange(self.app, self._api if takes_images else self._page, client_of(scope))
        with self._drain.track(exchange):
            return await exchange.run(scope, receive, send)
