"""Fixtures that several tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from captioner.launcher.supervisor import TritonServer

# The embedded model on a real server, a scripted endpoint, pages and the API in front of it, a Hub.
pytest_plugins = [
    f"tests.support.{name}" for name in ("served", "scripted_server", "pages", "api_server", "hub_server")
]

Start = Callable[..., TritonServer]

# On a busy machine the first draws are slow: that says nothing about a test.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")


def pytest_configure() -> None:
    """Let child processes end by Ctrl-C and SIGHUP: nohup and background shells start pytest with these ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # exec resets a handler, but not SIG_IGN


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` is skipped where there is none: it is the only kind that this machine may not run."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def start_triton(tmp_path: Path) -> Iterator[Start]:
    """`start_triton(repository, models=(...), **options)`: a ready server on free ports, stopped after."""
    servers: list[TritonServer] = []

    def start(repository: Path, **options: Any) -> TritonServer:
        log_path = tmp_path / f"server-{len(servers)}.log"
        free: dict[str, Any] = {
            "http_port": 0,
            "grpc_port": 0,
            "metrics_port": 0,
            "log_path": log_path,
            "drain_seconds": 5,
        }
        server = TritonServer(repository, **(free | options))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


TOY_CONFIG = """
backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""

TOY_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        xs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)]) for x in xs]
"""


def write_model(repository: Path, name: str, model: str = TOY_MODEL, config: str = TOY_CONFIG) -> Path:
    """A Python model in `repository`, by default one that doubles `x` into `y`; its version folder."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"{config}')
    (version / "model.py").write_text(model)
    return version
