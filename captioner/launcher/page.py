"""The page's process: start it, start it again when it ends by itself, let it drain at the end."""

from __future__ import annotations

import ctypes
import http.client
import signal
import subprocess
import sys
import threading
import time

from captioner.errors import StartupRefused
from captioner.launcher.backoff import Backoff
from captioner.publish.warm_standby import Log

PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0
DRAIN_SECONDS = 30.0  # the default of `python -m frontend --drain-seconds`
_END_SECONDS = 5.0  # from the end of the last stream to the end of the process


class Page:
    """`python -m frontend` on a port of 127.0.0.1, in front of one server."""

    def __init__(self, server: str, port: int, log: Log) -> None:
        """Start the page for the server at `server`, HOST:PORT, which need not be up yet."""
        self._command = [sys.executable, "-m", "frontend", "--server", server, "--port", str(port)]
        self._port = port
        self._log = log
        self._backoff = Backoff()
        self._next_start: float | None = None
        self._start()

    @property
    def pid(self) -> int:
        """The process id of the page that was started last."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the page's process runs."""
        return self._process.poll() is None

    def wait_ready(self, stopping: threading.Event) -> None:
        """Return once the page answers, or once `stopping`. Raises StartupRefused if it ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not stopping.wait(0.1):
            if not self.runs:
                raise StartupRefused(f"the page ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise StartupRefused(f"the page did not answer on port {self._port} within {START_SECONDS:.0f} s")
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                continue
            finally:
                connection.close()

    def restart_if_ended(self) -> None:
        """Start the page again if it has ended, after the wait of Backoff. Returns at once.

        Call it several times a second, on the main thread: the page gets SIGTERM when the thread that started it ends.
        """
        now = time.monotonic()
        if self._next_start is None and not self.runs:
            wait_s = self._backoff.wait_s(now - self._started)
            self._log(f"the page ended with exit code {self._process.returncode}; it starts again in {wait_s:g} s")
            self._next_start = now + wait_s
        if self._next_start is not None and now >= self._next_start:
            self._start()

    def stop(self) -> None:
        """Let the page finish its streams, for at most DRAIN_SECONDS and some; then end it."""
        self._process.terminate()
        try:
            self._process.wait(DRAIN_SECONDS + _END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            start_new_session=True,  # a terminal's Ctrl-C must reach only this process, which stops the page
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no lock
        )
        self._started = time.monotonic()
        self._next_start = None


def die_with_parent() -> None:
    """Before a child's exec: let the kernel send it SIGTERM when this process ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
