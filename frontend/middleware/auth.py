"""Authentication by API key or by user and password, for the page and the API.

Every request carries its credentials, so any replica can check them: there are no sessions.
"""

from __future__ import annotations

import base64
import binascii
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.client_identity import sign_in
from frontend.http_errors import AccessRefused, error_response
from frontend.middleware.asgi import path_of
from frontend.options import Options

KEY_HEADERS = ("ocp-apim-subscription-key", "api-key", "x-api-key")  # that other services' clients send
CHALLENGE = 'Basic realm="captioner", charset="UTF-8"'


class AuthMiddleware:
    """Accepts `Authorization: Bearer KEY`, Basic with USER:PASSWORD or a key as the password, and KEY_HEADERS."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app = app
        self._health = options.health_paths
        self._keys = [key.encode() for key in options.api_keys]
        self._auth = options.auth and ":".join(options.auth).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in self._health:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        keys = [headers[name] for name in KEY_HEADERS if name in headers]
        header = headers.get("authorization") or (f"Bearer {keys[0]}" if keys else None)
        credentials = None if header is None else self._valid(header)
        if credentials is not None:
            sign_in(scope, credentials)
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        hint = "send Authorization: Bearer KEY" if self._keys else "send a user and a password"
        error = AccessRefused(f"the request has {'no' if header is None else 'no valid'} key or password; {hint}")
        return await error_response(error, {"WWW-Authenticate": CHALLENGE})(scope, receive, send)

    def _valid(self, header: str) -> bytes | None:
        """Return the key, or USER:PASSWORD, if it is valid."""
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() == "bearer":
            key = credentials.strip().encode()
            return key if self._is_key(key) else None
        if scheme.lower() != "basic":
            return None
        try:
            pair = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return None
        is_user = self._auth is not None and secrets.compare_digest(pair, self._auth)
        key = pair.partition(b":")[2]
        return key if self._is_key(key) else pair if is_user else None

    def _is_key(self, candidate: bytes) -> bool:
        # Compare with every key in constant time, so that response times do not reveal a match.
        return sum(secrets.compare_digest(candidate, key) for key in self._keys) > 0
