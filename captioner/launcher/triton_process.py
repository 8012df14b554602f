"""One run of tritonserver: its command line, its readiness, its stubs, its end. Nothing is restarted here."""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import StartupRefused
from captioner.launcher import reaper, triton_wheel
from captioner.launcher.triton_log import ServerLog
from captioner.wire import ADMIN_HEADER

RESTRICTED = "shared-memory,model-repository,trace,logging"
_POLL_SECONDS = 0.1
_ZOMBIE_SECONDS = 1.0


@dataclass(frozen=True)
class ServerOptions:
    """What a server is started with; a restart uses the same again."""

    repository: Path
    models: tuple[str, ...]
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    log_path: Path
    admin_key: str  # visible to this machine's users in the process list: it keeps clients out, not neighbours
    start_seconds: float  # from start to ready
    drain_seconds: int  # from SIGTERM to the end of requests in flight


class TritonProcess:
    """A started server under its guard (`captioner.launcher.reaper`), which cleans up whatever happens to us."""

    def __init__(self, options: ServerOptions) -> None:
        """Starts the server and returns at once; raises StartupRefused where this machine cannot run it."""
        self._options = options
        self._instances: dict[int, str] = {}  # stub's process id → the instance it runs
        self._zombies: set[int] = set()
        self._log = ServerLog(options.log_path)
        environment = triton_wheel.environment()
        self._runtime = Path(tempfile.mkdtemp(prefix=f"captioner-{options.http_port}-"))
        backends = triton_wheel.build(self._runtime / "backends")
        server = triton_wheel.triton_root() / "bin" / "tritonserver"
        command = [sys.executable, "-I", "-S", reaper.__file__, f"--shm-prefix={self._runtime.name}"]
        command += [f"--runtime={self._runtime}", f"--drain-seconds={options.drain_seconds + 5}", "--"]
        command += [str(server), *_arguments(options, backends, self._runtime.name)]
        with options.log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the launcher, which then drains
            )

    @property
    def pid(self) -> int | None:
        """The server's process id, None before it has begun and after it has ended."""
        return next(iter(_children(self._guard.pid)), None)

    @property
    def exit_code(self) -> int | None:
        """None while the server runs; −n if signal n ended it."""
        code = self._guard.poll()
        return code if code is None or code <= 128 else 128 - code

    def wait_ready(self, progress: Callable[[list[str], float], None], stopping: Callable[[], bool]) -> None:
        """Waits until every model is loaded; `progress` gets those that still load and the seconds so far.

        Raises StartupRefused with the server's own reason if it ends or takes longer than `start_seconds`.
        """
        begin = next_look = time.monotonic()
        while not stopping():
            now = time.monotonic()
            why = self._log.failure()  # the server itself takes some seconds more to give up
            if why is None and now >= next_look:
                next_look = now + _ZOMBIE_SECONDS  # a model whose process ends while it loads may hang the server
                why = self.fault()
            loading = self._log.loading()
            if why is None and now - begin > self._options.start_seconds:
                why = f"not ready after {now - begin:.0f} s, still loading: {', '.join(loading) or 'nothing'}"
            if why is not None:
                raise StartupRefused(f"{why}; the server's log: {self._log.path}")
            if self.is_ready():
                return
            progress(loading, now - begin)
            time.sleep(_POLL_SECONDS)

    def is_ready(self) -> bool:
        """Whether every model is loaded and every port answers; metrics is the last that Triton opens.

        Metrics are asked for, not only the port: another's may be open there.
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
        """One HTTP request with the admin key; the status and the body. Raises OSError if nothing answers."""
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

    def fault(self) -> str | None:
        """Why this run is no longer whole: the server has ended, or the stub of a model has died.

        tritonserver 2.51 does not notice a dead stub and keeps it as a zombie. One that is unloaded in order
        is a zombie for a moment only, so it takes two calls, some tenths of a second apart.
        """
        if self.exit_code is not None:
            return f"tritonserver ended with exit code {self.exit_code}"
        server = self.pid
        stubs = _children(server) if server else {}
        zombies = {pid for pid, state in stubs.items() if state == "Z"}
        for pid in stubs.keys() - zombies - self._instances.keys():
            self._instances[pid] = _instance(pid)
        dead = zombies & self._zombies
        self._zombies = zombies
        return f"the process of {self._instances.get(dead.pop(), 'a model')} died" if dead else None

    def stop(self) -> None:
        """Lets requests in flight end within `drain_seconds`, then ends everything."""
        self._end(b"")

    def kill(self) -> None:
        """Ends everything at once: after a stub's death nothing can be drained."""
        self._end(reaper.KILL)

    def _end(self, word: bytes) -> None:
        try:
            self._guard.communicate(word, timeout=self._options.drain_seconds + 30)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        reaper.remove_files(self._runtime.name, self._runtime)  # if the guard itself was killed


def reachable(host: str) -> str:
    """The address at which a server bound to `host` answers on this machine."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _arguments(options: ServerOptions, backends: Path, shm_prefix: str) -> list[str]:
    restricted = f"{RESTRICTED}:{ADMIN_HEADER}={options.admin_key}"
    return [
        f"--model-repository={options.repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in options.models),
        "--exit-on-error=true",
        "--disable-auto-complete-config",  # completing costs each model a second stub and import of torch
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
        "--grpc-header-forward-pattern=^user-agent$",  # HTTP forwards none: a model can tell them apart
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--exit-timeout-secs={options.drain_seconds}",
    ]


def _children(parent: int) -> dict[int, str]:
    """The child processes of `parent`, each with its state's letter."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" ")
        except OSError:  # it ended while we looked
            continue
        state, ppid = rest.rpartition(")")[2].split()[:2]
        if int(ppid) == parent:
            children[int(pid)] = state
    return children


def _instance(stub: int) -> str:
    """The name of the model instance that a stub runs; the last but one of its arguments."""
    try:
        return Path(f"/proc/{stub}/cmdline").read_text().split("\0")[-3]
    except (OSError, IndexError):
        return "a model"
