"""Errors in the format of the API whose endpoint was called, also those that middlewares send before it runs."""

from __future__ import annotations

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.http_errors import ERROR_BODY, ErrorBody
from frontend.middleware.asgi import match_route

ErrorFormats = list[tuple[BaseRoute, ErrorBody]]  # of the routes


class ErrorFormatMiddleware:
    """Leaves the error format of a request's route in the scope."""

    def __init__(self, app: ASGIApp, formats: ErrorFormats) -> None:
        self.app = app
        self._routes = [route for route, _ in formats]
        self._formats = formats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = match_route(self._routes, scope)
        if route is not None:
            scope[ERROR_BODY] = next(body for each, body in self._formats if each is route)
        await self.app(scope, receive, send)
