"""`captioner up`: one command to a page that captions, one Ctrl-C to nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.publish.model_control import ModelControl, admin_key
from captioner.publish.publish import publish
from captioner.wire import CAPTIONER
from tests.support.killed import leave_begun
from tests.support.served import Served, assert_soon

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in held]
    for door in held:
        door.close()
    return ports


def up(repository: Path, ports: list[int]) -> subprocess.Popen[str]:
    options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics", "page"), ports, strict=True)]
    command = [sys.executable, "-m", "captioner.cli", "up", f"--repository={repository}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes_with(text: str) -> list[str]:
    listed = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            listed.append(command)
    return listed


def test_one_command_serves_the_page_and_ctrl_c_leaves_nothing(served: Served, repository: Path) -> None:
    ports, before = free_ports(4), set(Path("/dev/shm").iterdir())
    process = up(repository, ports)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "ready:" in line:
            break
    address = f"http://127.0.0.1:{ports[3]}"
    assert address in said[-1], "".join(said)
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in said)
    with urllib.request.urlopen(address, timeout=30) as page:
        assert page.status == 200
    with Client(f"127.0.0.1:{ports[1]}") as client:
        assert client.describe().model
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not processes_with(f"--http-port={ports[0]}") and not processes_with(f"--port {ports[3]}")
    left = set(Path("/dev/shm").iterdir()) - before
    assert not [path for path in left if path.name.startswith("captioner-")]


def test_the_version_before_stands_by_and_a_killed_server_comes_back_with_what_was_confirmed(
    repository: Path, tmp_path: Path
) -> None:
    mine, exported = VersionStore(shutil.copytree(repository, tmp_path / "model_repository")), tmp_path / "exported"
    for model in VERSIONED:
        shutil.copytree(mine.folder(model, 1), exported / model)
    publish(exported, mine, (), lambda _: None)
    ports = free_ports(4)
    process = up(mine.path, ports)
    assert process.stdout is not None
    said = next(line for line in process.stdout if "ready:" in line)
    control = ModelControl(f"127.0.0.1:{ports[1]}", admin_key(mine.path))
    assert_soon(lambda: control.loaded(CAPTIONER) == {1, 2}, 60)
    with Client(control.address) as client:
        assert client.describe().version == "2"
        # A publish that got as far as all its folders and died, and then the server.
        unconfirmed = leave_begun(mine, exported)
        (server,) = (
            int(entry.parent.name)
            for entry in Path("/proc").glob("[0-9]*/cmdline")
            if (words := entry.read_bytes().split(b"\0"))[0].endswith(b"/tritonserver")
            and f"--http-port={ports[0]}".encode() in words
        )
        os.kill(server, signal.SIGKILL)
        said += next(line for line in process.stdout if "set aside" in line)
        assert_soon(control.is_ready, 60)
        assert client.describe().version == "2"
    assert mine.quarantined()[unconfirmed].state == "refused"
    assert f"version {unconfirmed} was left unfinished" in said
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_start_that_is_ended(repository: Path, number: signal.Signals) -> None:
    ports = free_ports(4)
    process = up(repository, ports)
    assert process.stdout is not None
    for line in process.stdout:
        if "loading" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 30
    while left := [*processes_with(f"--http-port={ports[0]}"), *processes_with(f"--port {ports[3]}")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(("index", "name"), [(0, "HTTP"), (1, "gRPC"), (2, "metrics"), (3, "page")])
def test_a_taken_port_is_one_sentence(repository: Path, index: int, name: str) -> None:
    ports = free_ports(4)
    with socket.create_server(("127.0.0.1", ports[index])):
        process = up(repository, ports)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.strip() == (
        f"STARTUP_REFUSED: port {ports[index]} ({name}) is taken; choose another with --{name.lower()}-port"
    )
