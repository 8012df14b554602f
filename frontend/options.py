"""The options of the page and the API."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.errors import StartupRefused


@dataclass(frozen=True)
class Options:
    """Authentication, allowed image hosts, the concurrency limit and the mount path. Raises StartupRefused."""

    api_keys: tuple[str, ...] = ()  # each is valid for the API, and as a password of the page
    auth: tuple[str, str] | None = None  # user and password, for the page and the API
    image_hosts: tuple[str, ...] = ()  # such as images.example.org, *.example.org or images.example.org:8443
    max_in_flight: int = 64  # concurrent API requests
    mcp: bool = False  # serve an MCP tool at /gradio_api/mcp/
    root_path: str = ""  # path prefix of a proxy, such as /caption

    def __post_init__(self) -> None:
        if not all(key and key.isascii() and key == "".join(key.split()) for key in self.api_keys):
            raise StartupRefused("an API key must be non-empty ASCII text without spaces")
        if self.auth is not None and (":" in self.auth[0] or not all(self.auth)):
            raise StartupRefused("auth must be USER:PASSWORD, neither of them empty")
        if self.max_in_flight < 1:
            raise StartupRefused(f"max_in_flight is {self.max_in_flight}; it must be at least 1")
