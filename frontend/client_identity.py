"""Who sends a request: its API key or user if it has one, otherwise its network address; and the request's id.

Limits are shared by these clients, here and (as `client_id`) at the captioner server. Keys appear only as hashes.
"""

from __future__ import annotations

import hashlib
import ipaddress
from contextvars import ContextVar

from starlette.types import Scope

CLIENT_ID = "client_id"  # the wire's parameter; only this process sets it
IPV6_PREFIX = 64  # bits; a network of this size is one customer
_SCOPE_KEY = "captioner.client"
_current: ContextVar[str] = ContextVar("client", default="")
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def sign_in(scope: Scope, credentials: bytes) -> None:
    """Record that a request has valid credentials. A later `client_of` returns their client."""
    scope[_SCOPE_KEY] = _hash(b"credentials:" + credentials)


def client_of(scope: Scope) -> str:
    """Return the client of a request, a short hash. uvicorn has applied the forwarded address of a trusted proxy."""
    signed_in: str | None = scope.get(_SCOPE_KEY)
    host, _ = scope.get("client") or ("", 0)
    return signed_in or client_at(host)


def client_at(host: str) -> str:
    """Return the client at a network address, without credentials."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # such as a socket without addresses
        return _hash(host.encode())
    if address.version == 6 and address.ipv4_mapped is None:
        host = str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return _hash(b"address:" + host.encode())


def set_current(client: str) -> None:
    """Set the client of the running task and of the tasks that it starts."""
    _current.set(client)


def current() -> str:
    """Return the client of the running task, or "" outside a request."""
    return _current.get()


def set_request_id(request_id: str) -> None:
    """Set the id of the request that the running task answers."""
    _request_id.set(request_id)


def request_id() -> str:
    """Return the id of the running task's request, or "" outside a request."""
    return _request_id.get()


def client_parameters() -> dict[str, str]:
    """Return the client, by which the captioner server shares its turns, and the request's id."""
    values = {CLIENT_ID: current(), "request_id": request_id()}
    return {name: value for name, value in values.items() if value}


def _hash(text: bytes) -> str:
    return hashlib.sha256(b"captioner " + text).hexdigest()[:32]
