"""Helpers of the middlewares, which are plain ASGI because Starlette's BaseHTTPMiddleware buffers streams."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

METRICS = "/metrics"
MCP_PATHS = frozenset({"/gradio_api/mcp", "/gradio_api/mcp/", "/gradio_api/mcp/http", "/gradio_api/mcp/http/"})


def path_of(scope: Scope) -> str:
    """Return the request path without the path prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def match_route(routes: Sequence[BaseRoute], scope: Scope) -> BaseRoute | None:
    """Return the first route whose path matches the request, whatever its HTTP method, or None.

    At the root, the method must match too: the page is there.
    """
    if scope["type"] != "http":
        return None
    wanted = (Match.FULL,) if path_of(scope) == "/" else (Match.FULL, Match.PARTIAL)
    return next((route for route in routes if route.matches(scope)[0] in wanted), None)
