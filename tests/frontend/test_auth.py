"""Authentication by API key and by password, and invalid options."""

from __future__ import annotations

import base64
from itertools import product
from typing import Any

import httpx
import pytest

from captioner.errors import StartupRefused
from frontend.options import Options
from tests.support.api_client import error_of
from tests.support.api_server import DEAD, PAGE, api_server

KEYS = Options(api_keys=("key-one", "key-two"))
AUTH = Options(auth=("ann", "pass:wörd"))
BOTH = Options(api_keys=("key-one",), auth=("ann", "secret"))


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("options", "valid", "invalid"),
    [
        (
            KEYS,
            ["Bearer key-one", "bearer key-two", basic("anyone:key-two")],
            ["Bearer key-three", "Bearer key-on", "Bearer", "key-one", basic("key-one:"), basic("ann:secret")],
        ),
        (
            AUTH,
            [basic("ann:pass:wörd")],
            [basic("ann:pass"), basic("bob:pass:wörd"), "Bearer pass:w", "Basic %%%", "Basic é", "Basic"],
        ),
        (BOTH, ["Bearer key-one", basic("ann:secret"), basic(":key-one")], ["Bearer secret", basic("ann:")]),
    ],
)
def test_only_a_valid_key_or_password_opens_the_page_and_the_api(
    options: Options, valid: list[str], invalid: list[str]
) -> None:
    paths = ("/", "/v1/models", "/metrics", "/openapi.json", "//healthz", "/healthz/", "/readyz/../")
    with api_server(DEAD, options) as url, httpx.Client(base_url=url) as client:
        for path, header in [*((path, None) for path in paths), *product(("/", "/v1/models"), invalid)]:
            headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
            answer = client.get(url + path, headers=headers)
            assert answer.status_code == 401, (path, header)
            assert answer.headers["www-authenticate"].startswith("Basic")
            assert error_of(answer)["code"] == "invalid_api_key"
        for header in valid:
            assert client.get("/", headers={"Authorization": header}).text == PAGE, header
            answer = client.get("/v1/models", headers={"Authorization": header})
            assert error_of(answer)["code"] == "SERVER_UNREACHABLE", header
        if options.api_keys:
            for name in ("api-key", "x-api-key", "Ocp-Apim-Subscription-Key"):
                assert client.get("/", headers={name: "key-one"}).text == PAGE
                assert client.get("/", headers={name: "key-on"}).status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503


def test_without_keys_and_passwords_every_path_is_open(dead_url: str) -> None:
    assert httpx.get(dead_url).text == PAGE
    assert httpx.get(f"{dead_url}/metrics").status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        {"api_keys": ("",)},
        {"api_keys": ("two words",)},
        {"auth": ("", "x")},
        {"auth": ("x", "")},
        {"auth": ("a:b", "x")},
        {"max_in_flight": 0},
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(StartupRefused):
        Options(**options)
