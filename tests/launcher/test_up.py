"""`captioner up`: one command publishes, serves and opens the page; one Ctrl-C ends everything."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from captioner.artifacts.repository_templates import templates
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.errors import StartupRefused
from captioner.launcher.ports import choose_ports
from captioner.launcher.up import _run_export, recover
from captioner.publish.model_control import ModelControl, admin_key
from captioner.publish.publish import publish
from captioner.wire import CAPTIONER, MODELS
from tests.support.killed import leave_unfinished
from tests.support.processes import read_until, running
from tests.support.served import assert_soon

pytestmark = [pytest.mark.triton, pytest.mark.slow]

NAMES = ("HTTP", "gRPC", "metrics", "page")


@pytest.fixture
def ports() -> dict[str, int]:
    return choose_ports("127.0.0.1", dict.fromkeys(NAMES, 0))


def up(
    repository: Path, ports: dict[str, int], ignore: tuple[signal.Signals, ...] = ()
) -> AbstractContextManager[subprocess.Popen[str]]:
    options = [f"--{name.lower()}-port={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "captioner.cli", "up", f"--repository={repository}", *options]
    return running(command, ignore=ignore, seconds=280)


def processes(ports: dict[str, int]) -> list[list[str]]:
    """Return the command lines of the server and the page on these ports."""
    return [words for _, words in _commands() if {f"--http-port={ports['HTTP']}", str(ports["page"])} & set(words)]


def _commands() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(entry.parent.name), entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has just ended
            continue


def shared_memory(ports: dict[str, int]) -> list[Path]:
    return list(Path("/dev/shm").glob(f"captioner-{ports['HTTP']}-*"))


def test_one_command_serves_the_page_and_ctrl_c_leaves_nothing(repository: Path, ports: dict[str, int]) -> None:
    with up(repository, ports) as process:
        lines = read_until(process, "ready:")
        address = f"http://127.0.0.1:{ports['page']}"
        assert address in lines[-1]
        assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)
        assert any(line.endswith("] starting the server and the page\n") for line in lines)
        assert any("] loading " in line for line in lines)
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200
        with Client(f"127.0.0.1:{ports['gRPC']}") as client:
            assert client.describe().model
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not processes(ports) and not shared_memory(ports)


@pytest.mark.exhaustive
def test_up_creates_a_repository_that_does_not_exist_and_serves_it(tmp_path: Path, ports: dict[str, int]) -> None:
    with up(tmp_path / "new" / "models", ports) as process:
        read_until(process, "ready:")
        with Client(f"127.0.0.1:{ports['gRPC']}") as client:
            assert client.describe().version == "1"


def test_the_exporter_that_up_runs_creates_the_repository_from_the_templates(tmp_path: Path) -> None:
    repository = tmp_path / "new" / "models"
    command = [sys.executable, "-m", "export", "--repository", str(repository), str(tmp_path / "no-model")]
    with pytest.raises(StartupRefused, match=r"the model cannot be exported: .*no-model"):
        _run_export(command, print, threading.Event())
    for model in MODELS:
        assert (repository / model / "config.pbtxt").read_bytes() == (templates() / model / "config.pbtxt").read_bytes()


@pytest.fixture
def store(repository: Path, tmp_path: Path) -> VersionStore:
    """A copy of the repository with the embedded model as version 1."""
    return VersionStore(shutil.copytree(repository, tmp_path / "model_repository"))


@pytest.fixture
def exported(store: VersionStore, tmp_path: Path) -> Path:
    for model in VERSIONED:
        shutil.copytree(store.folder(model, 1), tmp_path / "exported" / model)
    return tmp_path / "exported"


def test_a_restart_first_quarantines_the_version_of_a_publish_that_died(store: VersionStore, exported: Path) -> None:
    unfinished, lines = leave_unfinished(store, exported), list[str]()
    recover(store.path, lines.append)
    assert lines == [f"version {unfinished} was left unfinished; it is quarantined"]
    assert set(store.versions()) == {1}


@pytest.mark.exhaustive
def test_the_previous_version_is_loaded_too_and_a_restart_serves_the_confirmed_version(
    store: VersionStore, exported: Path, ports: dict[str, int]
) -> None:
    publish(exported, store, (), lambda _: None)
    with up(store.path, ports) as process:
        read_until(process, "ready:")
        control = ModelControl(f"127.0.0.1:{ports['gRPC']}", admin_key(store.path))
        assert_soon(lambda: control.loaded(CAPTIONER) == {1, 2}, 60)
        with Client(control.address) as client:
            assert client.describe().version == "2"
            # A publish has placed all its folders and dies before it confirms them; then the server is killed.
            unconfirmed = leave_unfinished(store, exported)
            (server,) = (
                pid
                for pid, words in _commands()
                if words[0].endswith("/tritonserver") and f"--http-port={ports['HTTP']}" in words
            )
            os.kill(server, signal.SIGKILL)
            assert f"version {unconfirmed} was left unfinished" in read_until(process, "quarantined")[-1]
            assert_soon(control.is_ready, 60)
            assert client.describe().version == "2"
        assert store.quarantined()[unconfirmed].state == "refused"


@pytest.mark.parametrize(
    ("number", "ignore"),
    [(signal.SIGINT, ()), (signal.SIGKILL, ()), (signal.SIGTERM, (signal.SIGINT, signal.SIGHUP))],
    ids=["SIGINT", "SIGKILL", "SIGTERM, when the parent ignores SIGINT"],
)
def test_a_start_that_is_ended_leaves_nothing_behind(
    repository: Path, ports: dict[str, int], number: signal.Signals, ignore: tuple[signal.Signals, ...]
) -> None:
    with up(repository, ports, ignore) as process:
        read_until(process, "loading")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130)
        assert_soon(lambda: not processes(ports) and not shared_memory(ports), 30)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES[1:])])
def test_a_port_in_use_is_refused_in_one_sentence(repository: Path, ports: dict[str, int], name: str) -> None:
    with socket.create_server(("127.0.0.1", ports[name])), up(repository, ports) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.strip() == (
        f"STARTUP_REFUSED: port {ports[name]} ({name}) is in use; choose another with --{name.lower()}-port"
    )
