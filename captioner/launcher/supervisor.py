"""The embedded tritonserver: start, supervise, restart, stop. `captioner up`, tests and benchmarks use it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from captioner import wire
from captioner.errors import StartupRefused
from captioner.launcher.triton_process import ServerOptions, TritonProcess, reachable

_CHECK_SECONDS = 0.5
_MAX_PROBE_FAILURES = 2  # consecutive
_MAX_RESTARTS, _RESTART_WINDOW_SECONDS = 5, 300


def _no_callback(*_: object) -> None:
    """Do nothing."""


class TritonServer:
    """tritonserver on a model repository, as a context manager: ready inside the block, removed completely after it.

    The server is restarted when it ends, when a model's process dies, or after two failed probes in a row: at most 5
    times in 5 minutes, then `wait` raises. Port 0 picks a free port. All addresses are `host:port`.
    """

    def __init__(
        self,
        repository: Path,
        *,
        models: tuple[str, ...] | None = None,
        host: str = "127.0.0.1",
        http_port: int = wire.HTTP_PORT,
        grpc_port: int = wire.GRPC_PORT,
        metrics_port: int = wire.METRICS_PORT,
        log_path: Path | None = None,
        admin_key: str | None = None,
        start_seconds: float = 300,
        drain_seconds: int = 10,
        progress: Callable[[list[str], float], None] = _no_callback,
        on_restart: Callable[[str], None] = _no_callback,
        on_ready: Callable[[], None] = _no_callback,
        probe: Callable[[], bool] | None = None,
        probe_seconds: float = 30,
    ) -> None:
        """`models`: by default Captioner's own. `admin_key`: by default random; opens model control and shared memory.

        Callbacks: `progress` gets the models that are loading and the seconds so far. `on_restart` gets the reason
        before the new server starts. `on_ready` is called after each start and must not block. `probe` is called every
        `probe_seconds` while the server is ready and returns whether it works; it must limit its own time.

        Raises StartupRefused if the repository has none of the models or a port is in use.
        """
        repository = repository.resolve()
        ports = choose_ports(host, {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port})
        http_port, grpc_port, metrics_port = ports.values()
        self.log_path = log_path or default_log_path(http_port)
        self.http_address = f"{reachable(host)}:{http_port}"
        self.grpc_address = f"{reachable(host)}:{grpc_port}"
        self.metrics_address = f"{reachable(host)}:{metrics_port}"
        self.admin_key = admin_key or secrets.token_hex(16)
        self.restarts = 0
        self._options = ServerOptions(
            repository=repository,
            models=_models_in(repository, tuple(wire.MODELS) if models is None else models),
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log_path=self.log_path,
            admin_key=self.admin_key,
            start_seconds=start_seconds,
            drain_seconds=drain_seconds,
        )
        self._progress = progress
        self._on_restart = on_restart
        self._on_ready = on_ready
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._probe_failures = 0
        self._next_probe = 0.0
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._failure: StartupRefused | None = None
        self._restart_times: deque[float] = deque()
        self._process: TritonProcess | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="triton-supervisor", daemon=True)

    def start(self) -> None:
        """Start and return when every model is ready. Raises StartupRefused with the reason and the log's path."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".previous.log"))
        try:
            self._launch()
        except BaseException:  # also Ctrl-C while models load
            self._stopping.set()
            if self._process is not None:
                self._process.kill()
            raise
        self._supervisor.start()

    def stop(self) -> None:
        """Let requests in flight finish within `drain_seconds`, then remove every process and all shared memory."""
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        if self._process is not None:
            self._process.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Return after `stop` or after `timeout` seconds. Raises StartupRefused once the server was given up."""
        self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure

    @property
    def pid(self) -> int | None:
        """The process id of tritonserver; None while it does not run."""
        return self._process.pid if self._process else None

    def _launch(self) -> None:
        self._process = TritonProcess(self._options)
        self._process.wait_ready(self._progress, self._stopping.is_set)
        self._probe_failures, self._next_probe = 0, time.monotonic() + self._probe_seconds
        if not self._stopping.is_set():
            self._on_ready()

    def _supervise(self) -> None:
        try:
            while not self._stopping.wait(_CHECK_SECONDS):
                fault = self._fault()
                while fault is not None and not self._stopping.is_set():
                    fault = self._restart(fault)
        except StartupRefused as failure:
            self._failure = failure
        except Exception as error:  # of a callback, or a full disk: an unsupervised server counts as failed
            self._failure = StartupRefused(
                f"the server is no longer supervised: {error!r}; the server's log: {self.log_path}"
            )
        finally:
            self._ended.set()

    def _restart(self, reason: str) -> str | None:
        """Restart; return None, or why the new server is not ready. Raises StartupRefused above _MAX_RESTARTS."""
        now = time.monotonic()
        while self._restart_times and now - self._restart_times[0] > _RESTART_WINDOW_SECONDS:
            self._restart_times.popleft()
        assert self._process is not None
        self._process.kill()
        if len(self._restart_times) == _MAX_RESTARTS:
            raise StartupRefused(
                f"the server was restarted {_MAX_RESTARTS} times in {_RESTART_WINDOW_SECONDS // 60} minutes "
                f"and failed again: {reason}; the server's log: {self.log_path}"
            )
        self._restart_times.append(now)
        self.restarts += 1
        self._on_restart(reason)
        try:
            self._launch()
        except StartupRefused as refusal:
            return str(refusal)
        return None

    def _fault(self) -> str | None:
        """Return why the server must be restarted, or None."""
        assert self._process is not None
        fault = self._process.fault()
        if fault is None and self._probe is not None and time.monotonic() >= self._next_probe:
            self._probe_failures = 0 if self._probe() else self._probe_failures + 1
            self._next_probe = time.monotonic() + self._probe_seconds
            if self._probe_failures == _MAX_PROBE_FAILURES:
                fault = f"the probe failed {_MAX_PROBE_FAILURES} times in a row"
        return fault

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def default_log_path(http_port: int) -> Path:
    """Return the default log path: in the user's state folder, one file per HTTP port."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "captioner" / f"server-{http_port}.log"


def _models_in(repository: Path, models: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `models` that are in `repository`. Raises StartupRefused if there are none."""
    if not repository.is_dir():
        raise StartupRefused(f"the model repository {repository} does not exist")
    found = tuple(model for model in models if (repository / model / "config.pbtxt").is_file())
    if not found:
        raise StartupRefused(f"the model repository {repository} has none of {', '.join(models)}")
    return found


def choose_ports(host: str, ports: dict[str, int]) -> dict[str, int]:
    """Return `ports` by name, with a free port in place of each 0. Raises StartupRefused for a port in use."""
    chosen = {}
    with contextlib.ExitStack() as sockets:  # all stay open until the end, so that the free ports differ
        for name, port in ports.items():
            option = f"--{name.lower()}-port"
            probe = sockets.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OverflowError:
                raise StartupRefused(f"{option} is {port}; it must be from 0 to 65535") from None
            except OSError as error:
                is_used = error.errno == errno.EADDRINUSE
                why = "is in use" if is_used else f"cannot be opened on {host}: {error.strerror}"
                raise StartupRefused(f"port {port} ({name}) {why}; choose another with {option}") from None
            chosen[name] = probe.getsockname()[1]
    return chosen
