"""Start a Space: publish the model, then run the embedded server, and the page on all addresses.

`captioner up` serves a page for this machine only. Here the page is for visitors, and its end ends the container, which
the Space starts again. The port is $PORT, by default 7860.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from captioner.artifacts.repository_templates import default_repository
from captioner.client.probe import HealthCheck
from captioner.errors import CaptionerError
from captioner.launcher.page import DRAIN_SECONDS
from captioner.launcher.ports import choose_ports
from captioner.launcher.preconditions import require
from captioner.launcher.supervisor import TritonServer
from captioner.launcher.up import PROBE_STALL_SECONDS, recover
from captioner.publish.model_control import admin_key


def main() -> int:
    """Serve until SIGTERM or until the page ends; return the exit code."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    repository = default_repository()
    require(repository)
    model = os.environ.get("CAPTIONER_MODEL")
    export = [sys.executable, "-m", "export", "--repository", str(repository), *([model] if model else [])]
    if code := _wait(subprocess.Popen(export), stopping):
        return code
    # No other program of the container needs Triton's usual ports, but a test may run beside a server.
    ports = choose_ports("127.0.0.1", {"HTTP": 0, "gRPC": 0, "metrics": 0})

    def on_restart(reason: str) -> None:
        log(f"restarting the server: {reason}")
        recover(repository, log)

    with TritonServer(
        repository,
        http_port=ports["HTTP"],
        grpc_port=ports["gRPC"],
        metrics_port=ports["metrics"],
        admin_key=admin_key(repository),
        on_restart=on_restart,
        log=log,
        probe=HealthCheck(f"127.0.0.1:{ports['gRPC']}", f"127.0.0.1:{ports['metrics']}", PROBE_STALL_SECONDS, log),
    ) as server:
        page = [sys.executable, "-m", "frontend", "--server", server.grpc_address]
        page += ["--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860"), "--insecure"]
        log(f"the server is ready; starting the page on port {page[-2]}")
        return _wait(subprocess.Popen(page), stopping)


def _wait(process: subprocess.Popen[bytes], stopping: threading.Event) -> int:
    """Return the exit code of a process, which is asked to end once `stopping`."""
    while process.poll() is None:
        if stopping.wait(0.2):
            process.terminate()
            try:
                process.wait(DRAIN_SECONDS + 5)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.wait()


def log(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CaptionerError as error:
        sys.exit(error.wire())
