"""`captioner up`: publish the model, start the server and the page, and stop everything on Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from captioner.artifacts.version_store import VersionStore
from captioner.client.probe import HealthCheck
from captioner.errors import CaptionerError, StartupRefused
from captioner.launcher.page import Page, die_with_parent
from captioner.launcher.ports import choose_ports
from captioner.launcher.preconditions import require
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import admin_key
from captioner.publish.warm_standby import Log, load_previous_when_ready

PROBE_STALL_SECONDS = 20.0
PUBLISH_LOCK_SECONDS = 60.0  # how long to wait for a publish that is running


def up(
    repository: Path,
    *,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    page_port: int,
    model: str | None = None,
) -> int:
    """Run until SIGINT or SIGTERM; return the exit code. Raises StartupRefused with one sentence.

    Creates `repository` if it does not exist. `model` is published first; by default, what is live or else the
    embedded model.
    """
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    choose_ports("127.0.0.1", {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port, "page": page_port})
    require(repository)
    export = [sys.executable, "-m", "export", "--repository", str(repository)]
    _run_export(export + ([model] if model else []), log, stopping)
    if stopping.is_set():
        return 130
    repository, address = repository.resolve(), f"127.0.0.1:{grpc_port}"

    def on_restart(reason: str) -> None:
        log(f"restarting the server: {reason}")
        recover(repository, log)

    def on_ready() -> None:
        arguments = repository, address, log, PUBLISH_LOCK_SECONDS
        threading.Thread(target=load_previous_when_ready, args=arguments, name="warm-standby", daemon=True).start()

    log("starting the server and the page")
    page = Page(address, page_port, log)
    try:
        with TritonServer(
            repository,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            progress=_LoadProgress(log, stopping),
            admin_key=admin_key(repository),
            on_restart=on_restart,
            on_ready=on_ready,
            log=log,
            probe=HealthCheck(address, f"127.0.0.1:{metrics_port}", PROBE_STALL_SECONDS, log),
        ):
            page.wait_ready(stopping)
            if not stopping.is_set():
                log(f"ready: http://127.0.0.1:{page_port}  (Ctrl-C stops everything)")
            while not stopping.wait(0.2):
                page.restart_if_ended()
            log("stopping")
            page.stop()  # before the server, which its streams need
    finally:
        page.stop()
    return 0


def recover(path: Path, log: Log) -> None:
    """Quarantine the version of a publish that died, so that the restarted server serves a confirmed version."""
    if not os.access(path, os.W_OK):  # nobody can publish there
        return
    try:
        with VersionStore(path).lock(PUBLISH_LOCK_SECONDS) as store:
            for version in store.recover():
                log(f"version {version} was left unfinished; it is quarantined")
    except CaptionerError as error:  # a publish is running; it will notice that the server is gone
        log(error.wire())


def _run_export(command: list[str], log: Log, stopping: threading.Event) -> None:
    """Run the exporter and log its output. It is a process of its own, so that torch's memory is freed with it.

    Returns early once `stopping`. Raises StartupRefused with the exporter's last line on stderr.
    """
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no lock
        ) as process,
    ):
        ended = threading.Event()

        def terminate_when_stopping() -> None:
            while not ended.wait(0.2):
                if stopping.is_set():
                    process.terminate()

        watcher = threading.Thread(target=terminate_when_stopping)
        watcher.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log(line.strip())
            code = process.wait()
        finally:
            ended.set()
            watcher.join()
        stderr.seek(0)
        errors = stderr.read().strip().splitlines()
    if code and not stopping.is_set():
        last = errors[-1] if errors else f"exit code {code}"
        raise StartupRefused(f"the model cannot be exported: {last}")


class _LoadProgress:
    """Logs each model once while it loads. Raises KeyboardInterrupt to end the start once `stopping`."""

    def __init__(self, log: Log, stopping: threading.Event) -> None:
        self._log = log
        self._stopping = stopping
        self._logged: set[str] = set()

    def __call__(self, loading: list[str], seconds: float) -> None:
        if self._stopping.is_set() and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt  # a restart, on the supervisor's thread, ends with TritonServer.stop
        new = [model for model in loading if model not in self._logged]
        if new:
            self._logged.update(new)
            self._log(f"loading {', '.join(new)}")
