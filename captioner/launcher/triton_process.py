"""One run of tritonserver: command line, readiness, stub processes, shutdown. It never restarts a server."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import StartupRefused
from captioner.launcher import reaper, triton_wheel
from captioner.launcher.stubs import Stubs, children, model_of
from captioner.launcher.triton_log import ServerLog
from captioner.wire import ADMIN_HEADER

# A client may ping every half second: by default Triton ends the connection of one that pings more often than every 5
# minutes, and with it a stream that is quiet because its request waits.
KEEPALIVE = ("--grpc-keepalive-permit-without-calls=1", "--grpc-http2-min-recv-ping-interval-without-data=500")
RESTRICTED = "shared-memory,model-repository,trace,logging"  # Triton's endpoints that need the admin key
_POLL_SECONDS = 0.1
_FAULT_SECONDS = 1.0  # while models load: the server's own reason comes first


@dataclass(frozen=True)
class Fault:
    """Why the server is not whole. `model`: the model whose stub process died; None if more than that is lost."""

    sentence: str
    model: str | None = None


@dataclass(frozen=True)
class ServerOptions:
    """How a server is started. A restart uses the same options."""

    repository: Path
    models: tuple[str, ...]
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    log_path: Path
    admin_key: str  # other users of this machine see it in the process list; it only keeps network clients out
    start_seconds: float  # time limit from start to ready
    drain_seconds: int  # time limit for requests in flight after SIGTERM


class TritonProcess:
    """A running server and its reaper (`captioner.launcher.reaper`), which cleans up even if this process is killed."""

    def __init__(self, options: ServerOptions) -> None:
        """Start the server without waiting for it. Raises StartupRefused if this machine cannot run it."""
        self._options = options
        self._pid: int | None = None
        self._stubs = Stubs()
        self._log = ServerLog(options.log_path)
        environment = triton_wheel.environment()
        self._runtime = Path(tempfile.mkdtemp(prefix=f"captioner-{options.http_port}-"))
        backends = triton_wheel.build(self._runtime / "backends")
        server = triton_wheel.triton_root() / "bin" / "tritonserver"
        command = [sys.executable, "-I", "-S", reaper.__file__, f"--shm-prefix={self._runtime.name}"]
        command += [f"--runtime={self._runtime}", f"--drain-seconds={options.drain_seconds + 5}", "--"]
        command += [str(server), *_arguments(options, backends, self._runtime.name)]
        with options.log_path.open("ab") as log:
            self._reaper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C must reach only the launcher, which lets requests drain
            )

    @property
    def pid(self) -> int | None:
        """The server's process id; None before it starts and after it has ended."""
        if self._pid is None:
            self._pid = next(iter(children(self._reaper.pid)), None)
        return self._pid if self.exit_code is None else None

    @property
    def exit_code(self) -> int | None:
        """The server's exit code; None while it runs, −n if signal n ended it."""
        code = self._reaper.poll()
        return code if code is None or code <= 128 else 128 - code

    def wait_ready(self, progress: Callable[[list[str], float], None], stopping: Callable[[], bool]) -> None:
        """Wait until every model is loaded; `progress` gets the models that are loading and the seconds so far.

        Returns early once `stopping()`. Raises StartupRefused with the server's own reason if the server ends or is not
        ready after `start_seconds`.
        """
        begin = next_check = time.monotonic()
        while not stopping():
            now = time.monotonic()
            why = self._log.failure()  # the server itself exits some seconds later
            if why is None and now >= next_check:
                next_check = now + _FAULT_SECONDS
                fault = self.fault()  # the server may hang if the process of a loading model dies
                why = fault.sentence if fault else None
            loading = self._log.loading()
            if why is None and now - begin > self._options.start_seconds:
                why = f"not ready after {now - begin:.0f} s, still loading: {', '.join(loading) or 'nothing'}"
            if why is not None:
                raise StartupRefused(f"{why}; the server's log: {self._log.path}")
            if self.is_ready():
                self.find_stubs()
                return
            progress(loading, now - begin)
            time.sleep(_POLL_SECONDS)

    def is_ready(self) -> bool:
        """Return whether every model is loaded and every port answers. Triton opens the metrics port last.

        It requests /metrics, because an open port may be another program's.
        """
        try:
            status, _ = self.request("GET", "/v2/health/ready")
            return (
                status == 200 and self.request("GET", "/metrics", timeout=1, port=self._options.metrics_port)[0] == 200
            )
        except OSError:
            return False

    def request(
        self, method: str, path: str, body: str = "", timeout: float = 10, port: int | None = None
    ) -> tuple[int, bytes]:
        """Send one HTTP request with the admin key; return status and body. Raises OSError without an answer."""
        address = reachable(self._options.host), port or self._options.http_port
        connection = http.client.HTTPConnection(*address, timeout=timeout)
        try:
            connection.request(method, path, body, {ADMIN_HEADER: self._options.admin_key})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"no answer on {address}: {error!r}") from error
        finally:
            connection.close()

    def fault(self) -> Fault | None:
        """Return why the server is not whole: it has ended, or a model's stub process died. None if all processes run.

        A dead stub is reported some tenths of a second late, see captioner.launcher.stubs.
        """
        if self.exit_code is not None:
            return Fault(f"tritonserver ended with exit code {self.exit_code}")
        dead = self._stubs.dead(self.pid) if self.pid else None
        return Fault(f"the process of {dead} died", model_of(dead)) if dead else None

    def find_stubs(self) -> None:
        """Watch the stubs of models that have just been loaded."""
        if self.pid:
            self._stubs.find(self.pid)

    def forget_stubs(self, model: str) -> None:
        """Stop watching the stubs of a model, because it is about to be loaded anew."""
        if self.pid:
            self._stubs.forget(self.pid, model)

    def stop(self) -> None:
        """Let requests in flight finish within `drain_seconds`, then end all processes."""
        self._end(b"")

    def kill(self) -> None:
        """End all processes immediately: after a stub has died, requests cannot drain."""
        self._end(reaper.KILL)

    def _end(self, command: bytes) -> None:
        try:
            self._reaper.communicate(command, timeout=self._options.drain_seconds + 30)
        except subprocess.TimeoutExpired:
            self._reaper.kill()
            self._reaper.wait()
        self._kill_stragglers()
        reaper.remove_files(self._runtime.name, self._runtime)  # in case the reaper itself was killed

    def _kill_stragglers(self) -> None:
        """End the stubs of this run that are left if the reaper itself was killed.

        A stub that is still starting waits forever for its server: it has not yet called `end_with_parent`.
        """
        program = bytes(self._runtime) + b"/"  # a stub runs from the runtime folder, as no other process does
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().startswith(program):
                    os.kill(int(path.parent.name), signal.SIGKILL)


def reachable(host: str) -> str:
    """Return the address at which a server bound to `host` answers on this machine."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _arguments(options: ServerOptions, backends: Path, shm_prefix: str) -> list[str]:
    restricted = f"{RESTRICTED}:{ADMIN_HEADER}={options.admin_key}"
    return [
        f"--model-repository={options.repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in options.models),
        "--exit-on-error=true",
        "--disable-auto-complete-config",  # it would start a second stub per model, which imports torch again
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--cache-directory={triton_wheel.triton_root() / 'caches'}",
        f"--http-address={options.host}",
        f"--http-port={options.http_port}",
        "--http-thread-count=4",
        f"--http-restricted-api={restricted}",
        f"--grpc-address={options.host}",
        f"--grpc-port={options.grpc_port}",
        f"--grpc-restricted-protocol={restricted}",
        *KEEPALIVE,
        "--grpc-header-forward-pattern=^user-agent$",  # only gRPC: a model can tell it from HTTP
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--exit-timeout-secs={options.drain_seconds}",
    ]
