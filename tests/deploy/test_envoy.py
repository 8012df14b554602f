"""The balancer: the shipped configuration in the real Envoy, in front of scripted servers. Only addresses differ."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from captioner.client import Client
from tests.support.deploy_tools import one, render, run, tool
from tests.support.processes import free_port, running
from tests.support.scripted_server import TEXT, ScriptedServer
from tests.support.served import ROOT, assert_soon

CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"


@dataclass(frozen=True)
class Addresses:
    """Where a running Envoy listens."""

    captions: str
    observability: str
    admin_port: int


class Health:
    """Triton's HTTP port, which says that the model is loaded."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.asked.append(handler.path)
                handler.send_response(200)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_the_configuration_is_valid_and_uses_nothing_deprecated() -> None:
    done = run("envoy", "--mode", "validate", "--config-path", CONFIG)
    assert done.returncode == 0 and "OK" in done.stdout + done.stderr, done.stderr[-2000:]
    assert "eprecated" not in done.stderr


def three_servers(text: str, ports: dict[int, int], servers: list[tuple[int, int]]) -> str:
    """Return the configuration with free ports, and with three addresses in place of one name with three addresses."""
    for shown, used in ports.items():
        text = text.replace(f"0.0.0.0, port_value: {shown}", f"127.0.0.1, port_value: {used}")
        text = text.replace(f"127.0.0.1, port_value: {shown}", f"127.0.0.1, port_value: {used}")
    grpc = text.index("          - lb_endpoints:\n              - endpoint:\n", text.index("cluster_name: grpc"))
    end = text.index("    - name: http\n", grpc)
    endpoints = [
        f"              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, "
        f"health_check_config: {{port_value: {health}}}}}\n"
        for port, health in servers
    ]
    text = text[:grpc] + "          - lb_endpoints:\n" + "".join(endpoints) + text[end:]
    return text.replace(
        "address: captioner-servers, port_value: 8000", f"address: 127.0.0.1, port_value: {servers[0][1]}"
    )


@contextmanager
def balanced(servers: list[tuple[int, int]], tmp_path: Path) -> Iterator[Addresses]:
    """Run Envoy in front of servers, given as gRPC port and HTTP port."""
    ports = {8001: free_port(), 9902: free_port(), 9901: free_port()}
    path = tmp_path / "envoy.yaml"
    path.write_text(three_servers(CONFIG.read_text(), ports, servers))
    (container,) = one(render(), "Deployment", "balancer")["spec"]["template"]["spec"]["containers"]
    shipped = container["args"]
    assert shipped[0] == "-c"
    command: list[str | Path] = [tool("envoy"), "-c", path, *shipped[2:], "--concurrency", "1"]
    with running(command, seconds=100):
        ready = f"http://127.0.0.1:{ports[9902]}/ready"
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(ready, timeout=5):
                    break
            except OSError:
                assert time.monotonic() < end, "Envoy does not start"
                time.sleep(0.2)
        yield Addresses(f"127.0.0.1:{ports[8001]}", f"127.0.0.1:{ports[9902]}", ports[9901])


@pytest.mark.slow
def test_captions_of_one_client_spread_over_all_servers_and_avoid_one_that_stops(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers, healths = [], []
        for _ in range(3):
            servers.append(ScriptedServer())
            stack.callback(servers[-1].close)
            servers[-1].piece_s = 0.02
            healths.append(Health(free_port()))
        http = [health._server.server_address[1] for health in healths]
        addresses = [(each.port, port) for each, port in zip(servers, http, strict=True)]
        envoy = stack.enter_context(balanced(addresses, tmp_path))
        client = stack.enter_context(Client(envoy.captions, shrink=False))

        def captions(count: int) -> None:
            with ThreadPoolExecutor(12) as pool:
                texts = list(pool.map(lambda _: client.caption(b"image").text, range(count)))
            assert texts == [TEXT] * count

        assert_soon(lambda: all(len(health.asked) > 1 for health in healths), 30)
        captions(120)
        spread = sorted(len(each.requests) for each in servers)
        assert sum(spread) == 120 and spread[0] >= 25, spread

        # Triton's HTTP port closes first: the server finishes its captions and gets no others.
        healths[0].close()
        time.sleep(4)
        servers[0].requests.clear()
        captions(60)
        assert not servers[0].requests
        servers[1].close()  # without any notice: what reached no server is sent to another one
        captions(30)
        assert set(healths[1].asked) == {"/v2/models/captioner/ready"}

        with urllib.request.urlopen(f"http://{envoy.observability}/stats/prometheus", timeout=10) as answer:
            assert b'envoy_cluster_upstream_rq_total{envoy_cluster_name="grpc"}' in answer.read()
        for path in ("/quitquitquit", "/config_dump"):
            with pytest.raises(OSError, match="404"):
                urllib.request.urlopen(f"http://{envoy.observability}{path}", timeout=10)
        for health in (healths[1], healths[2]):
            health.close()


@pytest.mark.slow
def test_before_a_balancer_stops_its_captions_end_and_new_ones_go_elsewhere(tmp_path: Path) -> None:
    (container,) = one(render(), "Deployment", "balancer")["spec"]["template"]["spec"]["containers"]
    command = list(container["lifecycle"]["preStop"]["exec"]["command"])
    with ExitStack() as stack:
        server, health = ScriptedServer(), Health(free_port())
        stack.callback(server.close)
        stack.callback(health.close)
        http = health._server.server_address[1]
        envoy = stack.enter_context(balanced([(server.port, http)] * 3, tmp_path))
        client = stack.enter_context(Client(envoy.captions, shrink=False))
        assert_soon(lambda: len(health.asked) > 3, 30)
        server.piece_s = 2.0  # ten seconds for a caption
        with ThreadPoolExecutor(1) as pool:
            caption = pool.submit(client.caption, b"image")
            assert_soon(lambda: bool(server.requests), 30)
            script = command[-1].replace("/9901", f"/{envoy.admin_port}").replace(command[-1].split()[-1], "6")
            done = subprocess.run([*command[:-1], script], check=True, capture_output=True, text=True, timeout=60)
            assert done.stdout.startswith("HTTP/1.1 200 OK")
            host, _, port = envoy.captions.partition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), 5).close()
            assert caption.result(60).text == TEXT
