"""Servers of this folder's tests end by SIGKILL: a graceful stop takes Triton 3 s, and has tests of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captioner.launcher.supervisor import TritonServer
from tests.conftest import Start


@pytest.fixture
def start_triton(start_triton: Start) -> Iterator[Start]:
    """The suite's fixture, with servers that are killed before it stops them."""
    servers: list[TritonServer] = []

    def start(repository: Path, **options: Any) -> TritonServer:
        servers.append(start_triton(repository, **options))
        return servers[-1]

    yield start
    for server in servers:
        server._stopping.set()
        server._supervisor.join(60)
        if server.pid is not None and server._process is not None:
            server._process.kill()
