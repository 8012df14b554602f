"""`captioner up` as a child process on free ports, and what it leaves behind."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil
from typing_extensions import Self

from benchmarks.process_tree import parts
from captioner.launcher.ports import choose_ports

START_S, STOP_S = 300.0, 60.0


class RunningStack:
    """The server and the page, as a context manager. Addresses are HOST:PORT; `page` is a URL."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        ports = choose_ports("127.0.0.1", dict.fromkeys(("http", "grpc", "metrics", "page"), 0))
        self.http_port = ports["http"]
        self.grpc, self.metrics = f"127.0.0.1:{ports['grpc']}", f"127.0.0.1:{ports['metrics']}"
        self.page = f"http://127.0.0.1:{ports['page']}"
        self._options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[str, psutil.Process] = {}

    @property
    def pid(self) -> int:
        """The process id of the launcher."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "captioner.cli", "up", "--repository", str(self._repository), *self._options]
        with ExitStack() as on_failure:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            on_failure.callback(self._stop)
            end = time.monotonic() + START_S
            while not (_answers(f"{self.page}/readyz") and _answers(f"http://{self.metrics}/metrics")):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the stack did not start; its exit code is {self._process.poll()}")
                time.sleep(0.2)
            on_failure.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._seen = parts(self.pid)
        self._stop()

    def restart(self) -> None:
        """Stop the stack and start it again at the same addresses."""
        self._stop()
        self.__enter__()

    def left(self) -> list[str]:
        """Return the processes that still run after the stack was stopped."""
        return [f"{name}, process {process.pid}" for name, process in self._seen.items() if process.is_running()]

    def _stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def regions(stack: RunningStack) -> list[str]:
    """Return the names of the server's files in /dev/shm."""
    return [path.name for path in Path("/dev/shm").glob(f"captioner-{stack.http_port}-*")]


def gauge(metrics: str, name: str) -> float:
    """Return a gauge as the server shows it now, summed over the versions. Raises ValueError if it is not shown."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    if not values:
        raise ValueError(f"{name} is not shown")
    return sum(map(float, values))


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (OSError, http.client.HTTPException):
        return False
    return True
