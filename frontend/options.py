"""What an operator may set of the page and its API."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.errors import StartupRefused


@dataclass(frozen=True)
class Options:
    """Who may come in, which hosts images are fetched from, and how many requests are held at once."""

    api_keys: tuple[str, ...] = ()  # any of them opens the API, and the page as a password
    auth: tuple[str, str] | None = None  # user and password, for the page and the API alike
    image_hosts: tuple[str, ...] = ()  # such as images.example.org, *.example.org or images.example.org:8443
    max_in_flight: int = 64
    mcp: bool = False  # a tool for agents at /gradio_api/mcp/
    root_path: str = ""  # where a proxy shows all of this, such as /caption

    def __post_init__(self) -> None:
        if not all(key and key.isascii() and key == "".join(key.split()) for key in self.api_keys):
            raise StartupRefused("an API key must be ASCII text without spaces, and not empty")
        if self.auth is not None and (":" in self.auth[0] or not all(self.auth)):
            raise StartupRefused("auth must be USER:PASSWORD, neither of them empty")
        if self.max_in_flight < 1:
            raise StartupRefused(f"max_in_flight is {self.max_in_flight}; it must be at least 1")
