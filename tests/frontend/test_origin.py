"""Web pages of other sites: foreign origins and rebound host names are refused at every path."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from captioner.errors import StartupRefused
from frontend.options import Options
from tests.support.api_client import connect
from tests.support.api_server import DEAD, api_server
from tests.support.pages import Serve

PATHS = ("/", "/config", "/v1/models", "/v1/captions", "/gradio_api/mcp/", "/browser/main.js", "/metrics", "/healthz")
EVIL = "https://evil.example"


def status(url: str, path: str = "/", **headers: str) -> int:
    with connect(url) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n".encode())
        return int(connection.recv(100).split()[1])


def test_a_foreign_origin_is_refused_at_every_path_and_never_reflected(serve_page: Serve) -> None:
    url = serve_page(DEAD, "--mcp", "--allow-origin", "https://captions.example.org")
    for path in PATHS:
        for method in ("GET", "POST", "OPTIONS"):
            for origin in (EVIL, "null", "http://localhost:1", f"{url}.evil.example"):
                headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                answer = httpx.request(method, url + path, headers=headers, timeout=30)
                assert answer.status_code == 403 and "ORIGIN_REFUSED" in answer.text, (path, origin)
                assert not any(name.startswith("access-control-") for name in answer.headers)
    for path in PATHS:
        for headers in ({}, {"Origin": url}):
            answer = httpx.get(url + path, headers=headers, timeout=30)
            assert answer.status_code != 403, (path, headers)
            assert not any(name.startswith("access-control-") for name in answer.headers), path
        answer = httpx.get(url + path, headers={"Origin": "https://captions.example.org"}, timeout=30)
        assert answer.headers["access-control-allow-origin"] == "https://captions.example.org"
        assert "access-control-allow-credentials" not in answer.headers


def test_pages_of_an_allowed_origin_may_ask_before_they_send_a_key() -> None:
    allowed = "https://my.example"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with api_server(DEAD, Options(api_keys=("secret",), allow_origins=(allowed,))) as url:
        for path in ("/v1/chat/completions", "/v1/captions", "/v1/models"):
            answer = httpx.options(url + path, headers=asks | {"Origin": allowed})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, allowed)
            assert {"authorization", "content-type"} <= set(answer.headers["access-control-allow-headers"].split(","))
            assert "POST" in answer.headers["access-control-allow-methods"]
            refused = httpx.post(url + path, headers={"Origin": allowed})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, allowed)
            assert httpx.options(url + path, headers=asks | {"Origin": EVIL}).status_code == 403


@pytest.mark.parametrize(
    ("options", "host", "origin", "expected"),
    [
        ({}, "localhost:7860", None, 200),
        ({}, "[::1]:7860", None, 200),
        ({}, "127.0.0.1", "http://127.0.0.1", 200),
        ({}, "rebound.example", None, 403),
        ({}, "rebound.example", "http://rebound.example", 403),
        ({}, "localhost.evil.example", None, 403),
        ({}, "[", None, 403),
        ({"allow_origins": ("https://my.example",)}, "my.example", "https://my.example", 200),
        ({"allow_origins": ("https://my.example",)}, "my.example", None, 200),
        ({"allow_origins": ("https://my.example",)}, "127.0.0.1", "https://my.example", 200),
        ({"host": "0.0.0.0", "insecure": True}, "my.example", None, 200),
        ({"host": "0.0.0.0", "insecure": True}, "my.example", "https://my.example", 200),
        ({"host": "0.0.0.0", "insecure": True}, "my.example:443", "https://my.example", 200),
        ({"host": "0.0.0.0", "insecure": True}, "my.example:80", "https://my.example", 403),
        ({"host": "0.0.0.0", "insecure": True}, "my.example", "https://my.example:8443", 403),
        ({"host": "0.0.0.0", "insecure": True}, "my.example", "https://evil.example", 403),
        ({"api_keys": ("key",)}, "my.example", None, 401),
        ({"api_keys": ("key",)}, "my.example", EVIL, 403),
    ],
)
def test_the_host_and_the_origin_must_be_this_servers(
    options: dict[str, Any], host: str, origin: str | None, expected: int
) -> None:
    with api_server(DEAD, Options(**options)) as url:
        assert status(url, Host=host, **({"Origin": origin} if origin else {})) == expected


def test_health_checks_may_come_by_any_host_name() -> None:
    with api_server(DEAD) as url:
        assert status(url, "/healthz", Host="10.0.0.7:7860") == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_an_open_address_without_keys_and_login_needs_insecure(host: str) -> None:
    with pytest.raises(StartupRefused, match="--insecure"):
        Options(host=host)
    Options(host=host, insecure=True)
    Options(host=host, api_keys=("key",))
    Options(host=host, auth=("ann", "secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_loopback_address_needs_no_keys(host: str) -> None:
    Options(host=host)


@pytest.mark.parametrize("origin", ["my.example", "https://my.example/", "ftp://my.example", "https://", ""])
def test_an_origin_that_no_browser_sends_is_rejected(origin: str) -> None:
    with pytest.raises(StartupRefused, match="origin"):
        Options(allow_origins=(origin,))
