"""Two replicas, the page and a proxy, whose parts can be killed.

The servers are restarted by their supervisor. This module restarts the page and the proxy, as an orchestrator does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.process_tree import ENDED, parts
from captioner.launcher.supervisor import TritonServer
from tests.support.pages import nginx_command
from tests.support.processes import answers, free_port

SERVER_PARTS = {  # how the names of its processes begin, see benchmarks/process_tree.py
    "decoder": "captioner_",
    "encoder": "vision_encoder_",
    "preprocess": "preprocess_",
    "tritonserver": "tritonserver",
    "reaper": "reaper",
    "replica": "",  # all of them
}
PARTS = (*SERVER_PARTS, "page", "proxy")
_RESTART_SECONDS = 0.1
_GONE_SECONDS = 5.0
_PAGE_SECONDS = 60.0


class ChaosStack:
    """The stack. `addresses`: gRPC of the replicas. `page_url`, `url`: the HTTP API, directly and by the proxy."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.replicas = [
            TritonServer(
                repository,
                http_port=0,
                grpc_port=0,
                metrics_port=0,
                log_path=folder / f"replica-{number}.log",
                drain_seconds=3,
            )
            for number in range(2)
        ]
        self.addresses = [replica.grpc_address for replica in self.replicas]
        page_port, proxy_port = free_port(), free_port()
        self.page_url, self.url = f"http://127.0.0.1:{page_port}", f"http://127.0.0.1:{proxy_port}"
        page = [sys.executable, "-m", "frontend", "--server", ",".join(self.addresses), "--port", str(page_port)]
        proxy = nginx_command(folder, proxy_port, [self.page_url])
        self._programs = {
            "page": _Program(page, folder / "page.log"),
            "proxy": _Program(proxy, folder / "proxy.log"),
        }

    def start(self) -> None:
        """Start everything and wait until it serves."""
        for program in self._programs.values():
            program.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(TritonServer.start, self.replicas))
        end = time.monotonic() + _PAGE_SECONDS
        while not answers(f"{self.url}/healthz"):
            assert time.monotonic() < end, f"the page did not answer within {_PAGE_SECONDS:g} s"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop everything."""
        for program in self._programs.values():
            program.stop()
        with ThreadPoolExecutor() as pool:
            list(pool.map(TritonServer.stop, self.replicas))

    def kill(self, part: str, replica: int) -> bool:
        """End a part with SIGKILL and wait until it is gone; return False if it does not run."""
        if part in self._programs:
            return _kill(self._programs[part].processes())
        server = self.replicas[replica].pid
        if server is None:
            return False
        reaper = psutil.Process(server).ppid()
        found = parts(reaper)
        victims = [each for name, each in found.items() if name.startswith(SERVER_PARTS[part])]
        return _kill(victims)

    def remains(self) -> list[str]:
        """Return the processes and shared memory of the replicas that are left after `stop`."""
        ports = [f"captioner-{replica.http_address.rpartition(':')[2]}-" for replica in self.replicas]
        left = [str(path) for path in Path("/dev/shm").iterdir() if path.name.startswith(tuple(ports))]
        return left + [f"process {each.pid}" for each in self._orphans()]

    def kill_remains(self) -> None:
        """End the processes that `remains` returns."""
        _kill(self._orphans())

    def _orphans(self) -> list[psutil.Process]:
        ports = [f"captioner-{replica.http_address.rpartition(':')[2]}-" for replica in self.replicas]
        found = []
        for process in psutil.process_iter():
            with suppress(*ENDED):
                if any(port in word for port in ports for word in process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def chaos_stack(repository: Path, folder: Path) -> Iterator[ChaosStack]:
    """Run a stack. No process is left afterwards, whatever the block did."""
    stack = ChaosStack(repository, folder)
    try:
        stack.start()
        yield stack
    finally:
        try:
            stack.stop()
        finally:
            stack.kill_remains()


class _Program:
    """A program that is started again whenever it ends."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._restart, daemon=True)

    def start(self) -> None:
        self._launch()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        _kill(self.processes())
        if self._process is not None:
            self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """Return the program's processes, such as nginx and its workers."""
        return list(parts(self._process.pid).values()) if self._process else []

    def _launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(self._log.parent)}
            )

    def _restart(self) -> None:
        while not self._stopping.wait(_RESTART_SECONDS):
            if self._process is not None and self._process.poll() is not None:
                self._launch()


def _kill(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    end = time.monotonic() + _GONE_SECONDS
    while any(_runs(process) for process in processes) and time.monotonic() < end:
        time.sleep(0.005)
    return bool(processes)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except ENDED:
        return False
