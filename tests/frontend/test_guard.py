"""The page's other routes: Gradio's, MCP's, static files and unknown ones, with malformed and with large requests."""

from __future__ import annotations

import json
import re
import select
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from frontend.client_identity import client_at, current
from frontend.options import Options
from frontend.serve import application
from tests.support.api_client import BASE64, connect
from tests.support.api_server import DEAD, application_server

RUN = "/gradio_api/run/predict"
HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The whole application, with MCP, whose captioner server does not answer."""
    options = Options(mcp=True)
    app, drain = application(DEAD, options)
    with application_server(app, drain, options) as url:
        yield url


def functions(url: str) -> dict[int, int]:
    """Return the number of inputs of each event of the page that runs on the server."""
    config = httpx.get(f"{url}/config").json()
    return {each["id"]: len(each["inputs"]) for each in config["dependencies"] if each["backend_fn"]}


def test_the_page_loads_and_its_events_run(page: str) -> None:
    assert "Captioner" in httpx.get(page).text
    ran = 0
    for index, count in functions(page).items():
        answer = httpx.post(page + RUN, json={"fn_index": index, "data": [None] * count}, timeout=30)
        ran += answer.status_code == 200
    assert ran >= 5


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/gradio_api/call/anything", {"data": []}, 404, "PATH_UNKNOWN"),
        ("POST", "/gradio_api/queue/join", {"data": [], "fn_index": 0}, 404, "PATH_UNKNOWN"),
        ("POST", "/gradio_api/run/choose_style", {"data": []}, 404, "PATH_UNKNOWN"),
        ("GET", "/gradio_api/queue/data?session_hash=a", None, 404, "PATH_UNKNOWN"),
        ("GET", "/gradio_api/heartbeat/a", None, 404, "PATH_UNKNOWN"),
        ("GET", "/gradio_api/file=/etc/passwd", None, 404, "PATH_UNKNOWN"),
        ("GET", "/gradio_api/proxy=http://example.org/", None, 404, "PATH_UNKNOWN"),
        ("GET", "/gradio_api/mcp/sse", None, 404, "PATH_UNKNOWN"),
        ("PUT", "/config", {}, 405, "METHOD_REFUSED"),
        ("GET", RUN, None, 405, "METHOD_REFUSED"),
        ("POST", RUN, [], 400, "BODY_REFUSED"),
        ("POST", RUN, {}, 404, "PATH_UNKNOWN"),
        ("POST", RUN, {"fn_index": 999, "data": []}, 404, "PATH_UNKNOWN"),
        ("POST", RUN, {"fn_index": True, "data": []}, 404, "PATH_UNKNOWN"),
        ("POST", RUN, {"fn_index": 0, "data": None}, 400, "PARAMETER_INVALID"),
        ("POST", RUN, {"fn_index": 0, "data": []}, 400, "PARAMETER_INVALID"),
        (
            "POST",
            RUN,
            {"fn_index": 0, "data": [{"a": "secret"}, None, None, None, None, None]},
            400,
            "PARAMETER_INVALID",
        ),
        ("POST", RUN, {"fn_index": 0, "data": [None, None, [[]], None, None, None]}, 400, "PARAMETER_INVALID"),
    ],
)
def test_a_request_that_gradio_does_not_understand_is_a_typed_error_and_one_line_in_the_log(
    page: str,
    method: str,
    path: str,
    body: Any,
    status: int,
    code: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    answer = httpx.request(method, page + path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.text.strip()
    assert "secret" not in caplog.text
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "secret" not in out + err


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere%0Aforged", 404, "PATH_UNKNOWN"),
        ("GET", "/browser/nothing.js", 404, "PATH_UNKNOWN"),
        ("POST", "/browser/main.js", 405, "METHOD_REFUSED"),
    ],
)
def test_an_unknown_path_beside_gradio_is_a_typed_error(
    page: str, method: str, path: str, status: int, code: str
) -> None:
    answer = httpx.request(method, page + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "path", [RUN, "/gradio_api/queue/join", "/config", "/", "/browser/main.js", "/nowhere", "/gradio_api/mcp/"]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_at_every_path_while_little_of_it_is_read(page: str, path: str, chunked: bool) -> None:
    size, sent = 120 * 2**20, 0
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    part = b"x" * 2**16
    chunk = b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
    with connect(page) as connection:
        connection.sendall(f"{HEAD.format(path=path)}{length}\r\n\r\n".encode())
        while sent < size and not select.select([connection], [], [], 0)[0]:
            connection.sendall(chunk)
            sent += len(part)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    limit = 28 if "mcp" in path or path == "/" else 0  # both take images
    assert sent < (limit + 8) * 2**20, "the rest is what the kernel buffers"


def test_a_malformed_mcp_request_is_an_error_without_a_traceback(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    for content in (
        b"{",
        b"[]",
        json.dumps({"method": "secret"}).encode(),
        json.dumps(call | {"params": {"name": "unknown", "arguments": {}}}).encode(),
        json.dumps(call | {"params": {"name": "caption_image", "arguments": {"image": {"secret": []}}}}).encode(),
    ):
        answer = httpx.post(f"{page}/gradio_api/mcp/", content=content, headers=headers, timeout=30)
        assert answer.status_code < 500, answer.text
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "secret" not in out + err


def test_an_mcp_tool_knows_the_client_that_calls_it(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[str] = []

    def client_parameters() -> dict[str, str]:
        clients.append(current())
        return {}

    monkeypatch.setattr("frontend.mcp.client_parameters", client_parameters)
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    arguments = {"image": f"data:image/jpeg;base64,{BASE64}"}
    params = {"name": "caption_image", "arguments": arguments}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = httpx.post(f"{page}/gradio_api/mcp/", json=call, headers=headers, timeout=30)
    assert answer.status_code == 200
    assert clients == [client_at("127.0.0.1")], answer.text


def test_a_connection_that_never_sends_its_headers_is_closed() -> None:
    options = Options(keep_alive_s=1)
    app, drain = application(DEAD, options)
    with application_server(app, drain, options) as url, connect(url) as silent, connect(url) as slow:
        for _ in range(40):
            try:
                slow.sendall(b"G")
            except OSError:
                break
            slow.settimeout(0.1)
            try:
                if not slow.recv(100):
                    break
            except TimeoutError:
                pass
        else:
            pytest.fail("the connection stays open")
        assert silent.recv(100) == b""


def test_the_page_uses_no_path_that_is_refused(page: str) -> None:
    html = httpx.get(page).text
    paths = set(re.findall(r'(?:src|href)="(?:\./|/)([\w./-]+)"', html))
    assert len(paths) >= 3
    for path in paths:
        assert httpx.get(f"{page}/{path}").status_code == 200, path
