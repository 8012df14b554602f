"""A page that stops: new requests are refused, captions in progress finish, longer ones end with an error."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.api_client import BASE64, CAPTIONS, CHAT, DATA_URL
from tests.support.processes import free_port, running
from tests.support.scripted_server import TEXT, ScriptedServer

CHAT_BODY: dict[str, object] = {
    "model": "captioner",
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}],
}


@contextmanager
def page(server: ScriptedServer, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run the page in front of `server`; yield its port and its process."""
    port = free_port()
    command = [sys.executable, "-m", "frontend", "--server", server.address, "--port", str(port), *options]
    with running(command) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield port, process


def start(port: int, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
    """Send a request for a stream and return once it has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body | {"stream": True}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    return response


def stop(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM and wait until the page has begun to stop."""
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code, and what was written to stderr."""
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_a_stream_in_progress_finishes_while_new_requests_are_refused() -> None:
    server = ScriptedServer()
    with page(server) as (port, process):
        kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2)]
        for connection in kept:
            connection.request("GET", "/readyz")
            assert connection.getresponse().read().startswith(b'{"status":"ready"')
        server.piece_s = 0.6
        caption, chat = start(port, CAPTIONS, {"image": BASE64}), start(port, CHAT, CHAT_BODY)
        stop(process)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        for connection, path in zip(kept, ("/readyz", "/v1/models"), strict=True):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 503
            assert answer.headers["connection"] == "close"
            assert b"SERVER_STOPPING" in answer.read()
        events = caption.read().decode()
        assert (
            "".join(json.loads(line[6:]).get("text", "") for line in events.splitlines() if line[:5] == "data:") == TEXT
        )
        assert "event: done" in events
        assert chat.read().endswith(b"data: [DONE]\n\n")
        code, stderr = end_of(process)
    server.close()
    assert code == 0
    assert "Traceback" not in stderr


def test_what_lasts_longer_than_the_drain_ends_with_a_typed_error() -> None:
    server = ScriptedServer()
    server.piece_s = 0.3
    with page(server, "--drain-seconds", "1") as (port, process):
        streams = [start(port, CAPTIONS, {"image": BASE64}), start(port, CHAT, CHAT_BODY)]
        server.piece_s = 20
        whole = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        whole.request("POST", CAPTIONS, json.dumps({"image": BASE64}), {"Content-Type": "application/json"})
        began = time.monotonic()
        stop(process)
        caption, chat = (stream.read().decode() for stream in streams)
        answer = whole.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (503, "SERVER_STOPPING")
        code, stderr = end_of(process)
        assert time.monotonic() - began < 10
    server.close()
    last = caption.rstrip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["code"] == "SERVER_STOPPING"
    assert json.loads(chat.rstrip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "SERVER_STOPPING"
    assert code == 0
    assert "Traceback" not in stderr


def test_a_client_that_does_not_read_does_not_hold_up_the_end() -> None:
    server = ScriptedServer()
    server.pieces = ("a" * 2**20,) * 64
    with page(server, "--drain-seconds", "1") as (port, process):
        stream = start(port, CAPTIONS, {"image": BASE64})
        began = time.monotonic()
        stop(process)
        code, stderr = end_of(process)
        assert time.monotonic() - began < 10
        stream.close()
    server.close()
    assert code == 0
    assert "Traceback" not in stderr
