"""The options of the page and the API."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from captioner.errors import StartupRefused

API_NAMES = ("captions", "openai", "ollama", "huggingface", "azure", "sagemaker")
HEALTH_PATHS = ("/readyz", "/ping")  # /ping is SageMaker's
MAX_ALIAS = 200


@dataclass(frozen=True)
class Options:
    """Access, allowed image hosts, limits, time limits and the mount path. Raises StartupRefused."""

    api_keys: tuple[str, ...] = ()  # each is valid for the API, and as a password of the page
    auth: tuple[str, str] | None = None  # user and password, for the page and the API
    host: str = "127.0.0.1"  # address to listen on
    insecure: bool = False  # listen on other addresses than loopback without keys and login
    allow_origins: tuple[str, ...] = ()  # such as https://captions.example.org: other web origins of this server
    apis: tuple[str, ...] = API_NAMES  # groups of endpoints to serve; the page needs captions
    vertex_health: str = ""  # Vertex AI's path of health checks
    vertex_predict: str = ""  # and of predictions; empty outside Vertex AI
    aliases: tuple[str, ...] = ()  # other names of the served model
    image_hosts: tuple[str, ...] = ()  # such as images.example.org, *.example.org or images.example.org:8443
    max_in_flight: int = 64  # concurrent API requests
    mcp: bool = False  # serve an MCP tool at /gradio_api/mcp/
    root_path: str = ""  # path prefix of a proxy, such as /caption
    drain_s: float = 30.0  # for requests in flight when the process stops
    keep_alive_s: float = 75.0  # a connection may be this long without a request; longer than proxies keep theirs
    stall_s: float = 30.0  # a client may take this long to read the next part of a response

    def __post_init__(self) -> None:
        if not all(key and key.isascii() and key == "".join(key.split()) for key in self.api_keys):
            raise StartupRefused("an API key must be non-empty ASCII text without spaces")
        if self.auth is not None and (":" in self.auth[0] or not all(self.auth)):
            raise StartupRefused("auth must be USER:PASSWORD, neither of them empty")
        if self.max_in_flight < 1:
            raise StartupRefused(f"max_in_flight is {self.max_in_flight}; it must be at least 1")
        for name in ("drain_s", "keep_alive_s", "stall_s"):
            value = getattr(self, name)
            if not 0 < value < 86400:
                raise StartupRefused(f"{name} is {value:g} s; it must be more than 0 s and less than a day")
        for origin in self.allow_origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise StartupRefused(
                    f"allow_origins has {origin!r}; an origin is http(s)://HOST or http(s)://HOST:PORT"
                )
        self._check_endpoints()
        if not (is_loopback(self.host) or self.has_login or self.insecure):
            raise StartupRefused(
                f"the address {self.host!r} is open to others, and there is no key and no login; set "
                "CAPTIONER_API_KEYS or CAPTIONER_AUTH, or pass --insecure to give access to everyone"
            )

    def _check_endpoints(self) -> None:
        for name in self.apis:
            if name not in API_NAMES:
                raise StartupRefused(f"apis has {name!r}; the APIs are {', '.join(API_NAMES)}")
        for name, path in (("AIP_HEALTH_ROUTE", self.vertex_health), ("AIP_PREDICT_ROUTE", self.vertex_predict)):
            if path and not path.startswith("/"):
                raise StartupRefused(f"{name} is {path!r}; it must begin with /")
        for alias in self.aliases:
            if not alias.isprintable() or not 0 < len(alias) <= MAX_ALIAS:
                raise StartupRefused(f"the alias {alias[:80]!r} must be 1 to {MAX_ALIAS} printable characters")

    @property
    def ready_paths(self) -> tuple[str, ...]:
        """The paths of readiness checks."""
        return (*HEALTH_PATHS, *filter(None, [self.vertex_health]))

    @property
    def health_paths(self) -> frozenset[str]:
        """The paths that orchestrators call by address and without a key, also under full load."""
        return frozenset({"/healthz", *self.ready_paths})

    @property
    def has_login(self) -> bool:
        """Whether requests need a key or a login."""
        return bool(self.api_keys or self.auth)


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address means only this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
