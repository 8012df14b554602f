"""Child processes that never outlive their test, free ports and port forwarding."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

Process = subprocess.Popen[bytes]


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    ignore: Collection[signal.Signals] = (),
    seconds: float = 120,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with its output in pipes. It is killed after `seconds`; its process group at the end.

    Signals have their default action, except those in `ignore`: nohup and background shells ignore some of them.
    """
    prefix = ["env", "--default-signal=HUP,INT,TERM"]
    prefix += [f"--ignore-signal={number.name.removeprefix('SIG')}" for number in ignore]
    with subprocess.Popen(
        [*prefix, *map(str, command)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            _end(process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the stdout lines of a `running` command up to the first one that contains `text`.

    Fails if the process ends before.
    """
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"the process ended before {text!r}: {''.join(lines)}")


@contextmanager
def serving(command: list[str], url: str, **options: object) -> Iterator[Process]:
    """Run an HTTP server that answers at `url` within 120 s; stop it afterwards."""
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 120
        while not answers(url):
            assert process.poll() is None, f"the process ended with {process.returncode}"
            assert time.monotonic() < deadline, "the process did not answer within 120 s"
            time.sleep(0.05)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str] | Process) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


def answers(url: str) -> bool:
    """Return whether an HTTP server answers at `url`, with any status."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def forward(port: int, address: str) -> socket.socket:
    """Forward a port to the server at `address` until the returned socket is closed."""
    listener = socket.create_server(("127.0.0.1", port))
    host, _, target = address.rpartition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def join(near: socket.socket) -> None:
        with near, socket.create_connection((host, int(target))) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=join, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener
