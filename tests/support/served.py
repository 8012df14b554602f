"""The embedded model on a real tritonserver, for every test that wants one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.published import empty_repository
from captioner.embedded import EMBEDDED
from captioner.launcher.supervisor import TritonServer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """Addresses, each HOST:PORT."""

    grpc: str
    http: str
    metrics: str


def metric(served: Served, name: str) -> float:
    """A metric's value as the server shows it now, summed over its labels; 0 if it has not been counted yet."""
    with urllib.request.urlopen(f"http://{served.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert f"# TYPE {name} " in text, f"{name} is not shown"
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def assert_soon(holds: Callable[[], bool], seconds: float = 5) -> None:
    """Waits until it does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed model repository with the embedded model exported into it."""
    repository = empty_repository(tmp_path_factory.mktemp("repository") / "model_repository")
    export = [sys.executable, "-m", "export", EMBEDDED, "--repository", str(repository)]
    subprocess.run(export, check=True, cwd=ROOT, timeout=300)
    return repository


@contextmanager
def serve(repository: Path, log: Path) -> Iterator[Served]:
    """The repository's models, served as `captioner up` does it."""
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=log) as server:
        yield Served(server.grpc_address, server.http_address, server.metrics_address)


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Served]:
    """The embedded model on a server that a worker's tests share."""
    with serve(repository, repository.parent / "server.log") as served:
        yield served
