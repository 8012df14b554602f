"""`captioner up`: the model published, the server ready, the page open, and all of it gone after Ctrl-C."""

from __future__ import annotations

import ctypes
import http.client
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from captioner.artifacts.version_store import VersionStore
from captioner.client.probe import probe as caption_something
from captioner.errors import CaptionerError, StartupRefused
from captioner.launcher.supervisor import TritonServer, take_ports
from captioner.publish.model_control import admin_key
from captioner.publish.warm_standby import load_previous_when_ready

PR_SET_PDEATHSIG = 1
PAGE_START_SECONDS = 60.0
PROBE_STALL_SECONDS = 20.0
PUBLISH_ENDS_SECONDS = 60.0


def up(
    repository: Path,
    *,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    page_port: int,
    model: str | None = None,
) -> int:
    """Runs until a signal and returns the exit code. Raises StartupRefused with one sentence."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    take_ports("127.0.0.1", {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port, "page": page_port})
    export = [sys.executable, "-m", "export", "--repository", str(repository)]
    _run_export(export + ([model] if model else []), say, stopping)
    if stopping.is_set():
        return 130

    def probe() -> bool:
        try:
            caption_something(f"127.0.0.1:{grpc_port}", PROBE_STALL_SECONDS)
        except CaptionerError as error:
            return error.code == "SERVER_BUSY"  # a server that refuses in words is alive
        return True

    repository = repository.resolve()

    def restarting(reason: str) -> None:
        say(f"restarting: {reason}")
        recover(repository, say)

    def standing_by() -> None:
        arguments = repository, f"127.0.0.1:{grpc_port}", say, PUBLISH_ENDS_SECONDS
        threading.Thread(target=load_previous_when_ready, args=arguments, name="stand-by", daemon=True).start()

    say("starting Triton and the page")
    page = subprocess.Popen(
        [sys.executable, "-m", "frontend", "--server", f"127.0.0.1:{grpc_port}", "--port", str(page_port)],
        start_new_session=True,  # the terminal's Ctrl-C is ours alone; we end it
        preexec_fn=_end_with_us,  # noqa: PLW1509 - one system call, no lock
    )
    try:
        with TritonServer(
            repository,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            progress=_Progress(say, stopping),
            admin_key=admin_key(repository),
            on_restart=restarting,
            on_ready=standing_by,
            probe=probe,
        ) as server:
            _wait_for_page(page, page_port, stopping)
            if not stopping.is_set():
                say(f"ready: http://127.0.0.1:{page_port}  (Ctrl-C stops everything)")
            while not stopping.wait(0.2):
                server.wait(0)
                if page.poll() is not None:
                    raise StartupRefused(f"the page ended with exit code {page.returncode}")
            say("stopping")
    finally:
        page.terminate()
        try:
            page.wait(10)
        except subprocess.TimeoutExpired:
            page.kill()
    return 0


def recover(path: Path, say: Callable[[str], None]) -> None:
    """Before a start, so that it serves what was confirmed: what a publish left that died, or that the server took."""
    try:
        with VersionStore(path).lock(PUBLISH_ENDS_SECONDS) as repository:
            for version in repository.recover():
                say(f"version {version} was left unfinished; it is set aside")
    except CaptionerError as error:  # a publish that still runs, and that will find the server gone
        say(error.wire())


def _end_with_us() -> None:
    """In a child before it begins: the kernel ends it when this process is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _run_export(command: list[str], say: Callable[[str], None], stopping: threading.Event) -> None:
    """Runs the exporter, passing on what it says; its own process, so that torch leaves memory with it."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509 - one system call, no lock
        ) as process,
    ):
        ended = threading.Event()

        def stop_with_us() -> None:
            while not ended.wait(0.2):
                if stopping.is_set():
                    process.terminate()

        watcher = threading.Thread(target=stop_with_us)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            say(line.strip())
        code = process.wait()
        ended.set()
        watcher.join()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if code and not stopping.is_set():
        last = said[-1] if said else f"exit code {code}"
        raise StartupRefused(f"the model cannot be exported: {last}")


class _Progress:
    """Says which model is being loaded, once each; ends the start when we are to stop."""

    def __init__(self, say: Callable[[str], None], stopping: threading.Event) -> None:
        self._say = say
        self._stopping = stopping
        self._said: set[str] = set()

    def __call__(self, loading: list[str], seconds: float) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        new = [model for model in loading if model not in self._said]
        if new:
            self._said.update(new)
            self._say(f"loading {', '.join(new)}")


def _wait_for_page(page: subprocess.Popen[bytes], port: int, stopping: threading.Event) -> None:
    deadline = time.monotonic() + PAGE_START_SECONDS
    while not stopping.wait(0.1):
        if page.poll() is not None:
            raise StartupRefused(f"the page ended with exit code {page.returncode}")
        if time.monotonic() > deadline:
            raise StartupRefused(f"the page did not answer on port {port} within {PAGE_START_SECONDS:.0f} s")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            continue
        finally:
            connection.close()
