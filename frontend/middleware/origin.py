"""Protection from other sites' web pages: the Origin and Host headers of every request are checked.

A page of another site can send requests from a visitor's browser into the visitor's network. By DNS rebinding, it can
also make its own host name point at this server, so that the browser lets it read the responses.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.http_errors import OriginRefused, error_response
from frontend.middleware.asgi import path_of
from frontend.options import Options, is_loopback

METHODS = ("GET", "HEAD", "POST")
EXPOSED_HEADERS = (
    "Retry-After",
    "retry-after-ms",
    "x-captioner-unused-text",
    "x-request-id",
)  # that scripts of other origins may read
DEFAULT_PORTS = {"http": 80, "https": 443}


class OriginMiddleware:
    """Refuses an Origin that is neither this server's own nor one of `Options.allow_origins`.

    Pages of allowed origins get the CORS headers that let them read the responses. Their preflight requests, which
    carry no key, are answered here. On a loopback address without keys and login, Host must be a loopback name or the
    host of an allowed origin. Gradio reflects any Origin in its CORS headers, so those of the app are removed.
    """

    def __init__(self, app: ASGIApp, options: Options) -> None:
        async def app_without_cors(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, _without_cors(send))

        self.app = app_without_cors
        self._with_cors = CORSMiddleware(
            app_without_cors,
            allow_origins=options.allow_origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
        self._origins = {origin.lower() for origin in options.allow_origins}
        self._hosts = {urlsplit(origin).netloc for origin in self._origins}
        self._health = options.health_paths
        self._checks_host = is_loopback(options.host) and not options.has_login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        error = self._refusal(scope)
        if error is None:
            is_allowed = Headers(scope=scope).get("origin", "").lower() in self._origins
            return await (self._with_cors if is_allowed else self.app)(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        return await error_response(error)(scope, receive, send)

    def _refusal(self, scope: Scope) -> OriginRefused | None:
        headers = Headers(scope=scope)
        host, origins = headers.get("host", "").lower(), [value.lower() for value in headers.getlist("origin")]
        if host and self._checks_host and path_of(scope) not in self._health and host not in self._hosts:
            name = _name(host)
            if name is None or not is_loopback(name):
                return OriginRefused(f"the host {host[:80]!r} is not allowed; --allow-origin https://HOST allows it")
        for origin in origins:
            if origin not in self._origins and not _same_host(origin, host):
                return OriginRefused(f"the origin {origin[:80]!r} is not allowed; --allow-origin ORIGIN allows it")
        return None


def _same_host(origin: str, host: str) -> bool:
    """Return whether an origin is at a Host. A proxy may have ended TLS, so the schemes may differ."""
    try:
        parts = urlsplit(origin)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        other = urlsplit(f"//{host}")
        other_port = other.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    return parts.hostname is not None and (parts.hostname, port) == (other.hostname, other_port)


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _without_cors(send: Send) -> Send:
    async def send_without_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                pair for pair in message.get("headers", ()) if not pair[0].lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": headers}
        await send(message)

    return send_without_cors
