"""Who may come in: API keys, and a user's password, for the page and the API alike.

Every request carries its own proof, so it holds whichever replica answers.
"""

from __future__ import annotations

import base64
import binascii
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.http_errors import AccessRefused, refusal
from frontend.middleware.asgi import path_of
from frontend.options import Options

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # an orchestrator has no key
CHALLENGE = 'Basic realm="captioner", charset="UTF-8"'


class AuthMiddleware:
    """ASGI middleware: `Authorization: Bearer KEY` or Basic with USER:PASSWORD, or a key as Basic's password."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app = app
        self._keys = [key.encode() for key in options.api_keys]
        self._auth = options.auth and ":".join(options.auth).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in OPEN_PATHS:
            return await self.app(scope, receive, send)
        header = Headers(scope=scope).get("authorization")
        if header is not None and self._opens(header):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        what = "send Authorization: Bearer KEY" if self._keys else "send a user and a password"
        error = AccessRefused(f"{'no key' if header is None else 'this key'} opens nothing here; {what}")
        return await refusal(error, {"WWW-Authenticate": CHALLENGE})(scope, receive, send)

    def _opens(self, header: str) -> bool:
        scheme, _, proof = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._is_key(proof.strip().encode())
        if scheme.lower() != "basic":
            return False
        try:
            pair = base64.b64decode(proof.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        is_user = self._auth is not None and secrets.compare_digest(pair, self._auth)
        return self._is_key(pair.partition(b":")[2]) or is_user

    def _is_key(self, proof: bytes) -> bool:
        # All of them, each to its end, so that the time taken says nothing.
        return sum(secrets.compare_digest(proof, key) for key in self._keys) > 0
