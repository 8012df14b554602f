"""Authentication by API key or by user and password, for the page and the API.

Every request carries its credentials, so any replica can check them: there are no sessions.
"""

from __future__ import annotations

import base64
import binascii
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.http_errors import AccessRefused, error_response
from frontend.middleware.asgi import path_of
from frontend.options import Options

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # health checks of an orchestrator carry no key
CHALLENGE = 'Basic realm="captioner", charset="UTF-8"'


class AuthMiddleware:
    """Accepts `Authorization: Bearer KEY`, Basic with USER:PASSWORD, or Basic with a key as the password."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app = app
        self._keys = [key.encode() for key in options.api_keys]
        self._auth = options.auth and ":".join(options.auth).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in OPEN_PATHS:
            return await self.app(scope, receive, send)
        header = Headers(scope=scope).get("authorization")
        if header is not None and self._is_valid(header):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        hint = "send Authorization: Bearer KEY" if self._keys else "send a user and a password"
        error = AccessRefused(f"the request has {'no' if header is None else 'no valid'} key or password; {hint}")
        return await error_response(error, {"WWW-Authenticate": CHALLENGE})(scope, receive, send)

    def _is_valid(self, header: str) -> bool:
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._is_key(credentials.strip().encode())
        if scheme.lower() != "basic":
            return False
        try:
            pair = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        is_user = self._auth is not None and secrets.compare_digest(pair, self._auth)
        return self._is_key(pair.partition(b":")[2]) or is_user

    def _is_key(self, candidate: bytes) -> bool:
        # Compare with every key in constant time, so that response times do not reveal a match.
        return sum(secrets.compare_digest(candidate, key) for key in self._keys) > 0
