"""Clients that stop reading: they hold no place, no decoding and no memory."""

from __future__ import annotations

import time
from contextlib import ExitStack

import httpx
import psutil
import pytest

from frontend.options import Options
from tests.support.api_client import BASE64, LONG, send, soon
from tests.support.api_server import api_server
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served, metric


def test_a_client_that_stops_reading_is_cut_and_its_caption_is_cancelled() -> None:
    server = ScriptedServer()
    server.pieces = ("a" * 2**18,) * 2000  # 500 MiB
    process = psutil.Process()
    with api_server(server.address, Options(stall_s=1)) as url:
        before = process.memory_info().rss
        with send(url, {"image": BASE64, "stream": True}) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            assert not server.cancelled.is_set()
            assert server.cancelled.wait(10), "the caption goes on for nobody"
            assert soon(lambda: "captioner_api_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
            assert process.memory_info().rss - before < 64 * 2**20
            with pytest.raises(ConnectionResetError):
                connection.makefile("rb").read()
    server.close()


def test_a_client_that_reads_slowly_receives_everything() -> None:
    server = ScriptedServer()
    server.pieces = ("a" * 2**18,) * 40
    received = 0
    closing = {"Connection": "close"}
    with (
        api_server(server.address, Options(stall_s=1)) as url,
        send(url, {"image": BASE64, "stream": True}, headers=closing) as connection,
    ):
        began = time.monotonic()
        while part := connection.recv(2**17):
            received += len(part)
            if time.monotonic() - began < 4:
                time.sleep(0.1)
    server.close()
    assert received > 40 * 2**18


@pytest.mark.triton
def test_streams_that_nobody_reads_leave_the_server_free(url: str, served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(send(url, {"image": BASE64, "stream": True} | LONG))
        assert soon(lambda: metric(served, "captioner_running") > 0)
        assert soon(lambda: metric(served, "captioner_running") == 0, 30)
        assert soon(lambda: "captioner_api_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
