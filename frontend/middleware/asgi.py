"""What the middlewares share. They are plain ASGI: Starlette's BaseHTTPMiddleware holds streams back."""

from __future__ import annotations

from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """The path below the one where a proxy shows the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
