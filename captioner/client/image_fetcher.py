"""Fetch images by URL: only from hosts that are allowed, and never from a private network (SSRF).

DNS rebinding does not help an attacker: each connection resolves the name once, checks every address of the result,
and connects to one of these addresses. The page's server and `captioner caption --allow-url` use it. It needs httpcore
and anyio, which the package `captioner` alone does not bring.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import anyio
import httpcore

from captioner.errors import ImageRefused, ImageTooLarge
from captioner.wire import MAX_IMAGE_BYTES

TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
HEADERS = [("User-Agent", "captioner"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
_URL_SAFE = "/%:@!$&'()*+,;=~?"
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Python before 3.13 classifies these as public.
_NOT_PUBLIC = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")]

Resolve = Callable[[str, int], Awaitable[list[str]]]


class ImageUrlRefused(ImageRefused):
    """The URL is malformed or its host is not allowed."""

    code = "IMAGE_URL_REFUSED"


class ImageUrlFailed(ImageRefused):
    """The URL is allowed, but fetching it failed."""

    code = "IMAGE_URL_FAILED"


def is_public(address: str) -> bool:
    """Return whether an IP address is public. An IPv4 address embedded in an IPv6 address is checked as itself."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) % 2**32) if ip in _NAT64 else None)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _GLOBAL_V6:
            return False
    special = any(ip.version == network.version and ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not ip.is_multicast and not special


async def resolve(host: str, port: int) -> list[str]:
    """Return every IP address of a host."""
    results = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in results))


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """An httpcore backend that resolves and checks addresses itself. TLS still verifies the host name."""

    def __init__(self, resolve: Resolve, allowed: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that accepts. Raises ImageUrlRefused if any address is not allowed."""
        addresses = await self._resolve(host, port)
        if not all(self._allowed(address) for address in addresses):
            raise ImageUrlRefused(f"{host} has a private address; images are fetched from public addresses only")
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class ImageFetcher:
    """Fetches images from `hosts`: names or patterns such as *.example.org, with the port if it is not the default.

    Tests replace `resolve`, `allowed` and `tls`.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        *,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self._hosts = [host.lower() for host in hosts]
        self._network = CheckedNetwork(resolve, allowed)
        self._tls = tls or ssl.create_default_context()
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def fetch(self, url: str) -> bytes:
        """Return the bytes at `url`. Raises ImageUrlRefused, ImageUrlFailed or ImageTooLarge."""
        try:
            with anyio.fail_after(self._timeout_s):
                return await self._fetch(url)
        except TimeoutError:
            raise ImageUrlFailed(f"fetching the image took longer than {self._timeout_s:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise ImageUrlFailed(f"the image could not be fetched: {error or type(error).__name__}") from None

    async def _fetch(self, url: str) -> bytes:
        async with httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._network) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                async with pool.stream("GET", self._checked(url), headers=HEADERS) as response:
                    headers = {name.lower(): value for name, value in response.headers}
                    if response.status in REDIRECTS and b"location" in headers:
                        url = _join(url, headers[b"location"].decode("latin-1"))
                        continue
                    if response.status != 200:
                        raise ImageUrlFailed(f"the image's host answered HTTP {response.status}")
                    return await self._read(response)
        raise ImageUrlFailed(f"the image's URL redirects more than {MAX_REDIRECTS} times")

    def _checked(self, url: str) -> httpcore.URL:
        """Return the parsed URL of an allowed host. httpcore gets the parts, so it cannot parse the URL differently."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise ImageUrlRefused(f"{url[:80]!r} is not a valid image URL") from None
        authority = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        if not self._hosts:
            raise ImageUrlRefused("image URLs are not allowed on this server; send the file or a data URL")
        if not host or parts.username is not None or not any(fnmatchcase(authority, each) for each in self._hosts):
            raise ImageUrlRefused(f"images from {authority[:80]!r} are not allowed; send the file or a data URL")
        target = quote(parts.path or "/", safe=_URL_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_URL_SAFE)
        return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target)

    async def _read(self, response: httpcore.Response) -> bytes:
        data = bytearray()
        async for part in response.aiter_stream():
            data += part
            if len(data) > self._max_bytes:
                raise ImageTooLarge(f"the image at this URL is larger than {self._max_bytes >> 20} MiB")
        return bytes(data)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageUrlRefused(f"the image's URL redirects to {location[:80]!r}, which is not a valid URL") from None
