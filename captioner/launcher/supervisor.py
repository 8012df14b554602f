"""The embedded tritonserver: start, supervise, repair, stop. `captioner up`, tests and benchmarks use it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from captioner import wire
from captioner.errors import CaptionerError, StartupRefused, typed
from captioner.launcher.backoff import Backoff
from captioner.launcher.health import Health, Probe
from captioner.launcher.ports import choose_ports
from captioner.launcher.reload import can_reload, reload
from captioner.launcher.triton_process import Fault, ServerOptions, TritonProcess, reachable

_CHECK_SECONDS = 0.1
_START_ATTEMPTS = 3  # of a server that a signal ends while it starts: Triton 2.51 can abort in boost's shared memory
_MAX_RELOADS = 3  # of a model in one run of the server; each leaves the dead stub's memory and threads in the server


def _no_callback(*_: object) -> None:
    """Do nothing."""


class TritonServer:
    """tritonserver on a model repository, as a context manager: ready inside the block, removed completely after it.

    When the process of a model dies, that model alone is loaded anew where Triton can; else, and when the server ends
    or two probes in a row fail, the server is restarted. A server that was ready once is never given up: after restarts
    that fail, the next one waits 1 s, then twice as long each time, up to a minute. Port 0 picks a free port. All
    addresses are `host:port`.
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
        log: Callable[[str], None] = _no_callback,
        probe: Probe | None = None,
        probe_seconds: float = 30,
    ) -> None:
        """`models`: by default Captioner's own. `admin_key`: by default random; opens model control and shared memory.

        Callbacks: `progress` gets the models that are loading and the seconds so far. `on_restart` gets the reason
        before the new server starts. `on_ready` is called after each start and must not block. `log` gets a line about
        every other fault and repair. `probe` is called every `probe_seconds` while the server is ready, on a thread of
        its own, and returns why the server does not work, or None; it must limit its own time.

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
        self.reloads = 0
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
        self._log = log
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._health = Health(None, probe_seconds)
        self._stopping = threading.Event()
        self._ready_since = 0.0
        self._backoff = Backoff()
        self._reloads: Counter[str] = Counter()  # by model, in this run of the server
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
        self._health.stop()
        if self._supervisor.is_alive():
            self._supervisor.join()
        if self._process is not None:
            self._process.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `stop` is called, at most `timeout` seconds; return whether it was."""
        return self._stopping.wait(timeout)

    @property
    def pid(self) -> int | None:
        """The process id of tritonserver; None while it does not run."""
        return self._process.pid if self._process else None

    def _launch(self) -> None:
        """Start a server and wait until it is ready. A start that a signal ends is tried again, twice."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._process = TritonProcess(self._options)
            try:
                self._process.wait_ready(self._progress, self._stopping.is_set)
                break
            except StartupRefused as refusal:
                code = self._process.exit_code
                if code is None or code >= 0 or attempt == _START_ATTEMPTS:
                    raise
                self._process.kill()
                self._log(f"signal {-code} ended tritonserver while it started; trying again: {refusal}")
        self._health.stop()
        self._health = Health(self._probe, self._probe_seconds)
        self._ready_since = time.monotonic()
        self._reloads.clear()
        if not self._stopping.is_set():
            self._on_ready()

    def _supervise(self) -> None:
        while not self._stopping.wait(_CHECK_SECONDS):
            try:
                assert self._process is not None
                fault = self._process.fault() or (Fault(self._health.fault) if self._health.fault else None)
                if fault and not (fault.model and self._reload(fault.sentence, fault.model)):
                    self._restart(fault.sentence)
            except Exception as error:  # of a callback, or a full disk: supervision must go on
                self._log(f"the supervision of the server failed and goes on: {error!r}")
                self._stopping.wait(1)

    def _reload(self, reason: str, model: str) -> bool:
        """Load one model anew, with the versions that are loaded. Return False if only a restart can help."""
        assert self._process is not None
        if self._reloads[model] == _MAX_RELOADS:
            return False
        try:
            if not can_reload(self._options.repository, model, self.metrics_address):
                return False
            self._reloads[model] += 1
            self._process.forget_stubs(model)
            reload(self._options.repository, self.grpc_address, self.admin_key, model)
            self._process.find_stubs()
        except Exception as error:
            self._log(f"{reason}; the model cannot be loaded anew: {typed(error).wire()}")
            return False
        self.reloads += 1
        self._log(f"{reason}; the model is loaded anew")
        return True

    def _restart(self, reason: str | None) -> None:
        """Restart until the server is ready or stopped; the wait before each restart is that of Backoff."""
        ran_s = time.monotonic() - self._ready_since
        while reason is not None and not self._stopping.is_set():
            assert self._process is not None
            self._process.kill()
            if wait_s := self._backoff.wait_s(ran_s):
                self._log(
                    f"the server failed {self._backoff.failures} times in a row; it starts in {wait_s:g} s: {reason}"
                )
                if self._stopping.wait(wait_s):
                    return
            self.restarts += 1
            ran_s = 0.0
            try:
                self._on_restart(reason)
                self._launch()
                reason = None
            except (CaptionerError, OSError) as error:
                reason = str(error)

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
