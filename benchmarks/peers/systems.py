"""The systems that are compared: what each needs, how it is started, and how it is asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import environments
from benchmarks.peers.requests import CONNECT, Connect
from benchmarks.published import Published, served_copy

START_S, STOP_S = 180.0, 60.0


@dataclass(frozen=True)
class System:
    """One system. `module` is its program in `servers`, `requirements` are what this environment lacks."""

    name: str
    title: str
    module: str
    requirements: tuple[str, ...] = ()

    @property
    def connect(self) -> Connect:
        """How it is asked."""
        return CONNECT[self.name]

    @contextmanager
    def running(self, model: Published, work: Path) -> Iterator[str]:
        """Yield the address HOST:PORT of the system while it serves `model`. Raises RuntimeError if it does not start.

        Its output goes to a log in the folder `work`.
        """
        python = environments.python(self.name, self.requirements)
        port = _free_port()
        folder = model.folder
        if self.name == "captioner" and not (folder := work / "repository").is_dir():
            served_copy(model, folder)
        command = [str(python), "-m", f"benchmarks.peers.servers.{self.module}", str(folder), str(port)]
        if self.name == "bentoml":
            service = f"benchmarks.peers.servers.{self.module}:Captioner"
            command = [str(python), "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
        environment = os.environ | {
            "PEER_MODEL": str(folder),
            "PYTHONPATH": str(environments.ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(work / "bentoml"),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        log = work / f"{self.name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=environments.ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            _wait_for(process, port, log)
            yield f"127.0.0.1:{port}"
        finally:
            _stop(process)


SYSTEMS = (
    System("captioner", "Captioner", "captioner_server"),
    System("gradio", "Gradio Space", "gradio_space"),
    System("fastapi", "FastAPI", "fastapi_server"),
    System("litserve", "LitServe, batches", "litserve_server", ("litserve==0.2.19",)),
    System("ray", "Ray Serve, batches", "ray_server", ("ray[serve]==2.60.0",)),
    System("bentoml", "BentoML, batches", "bentoml_service", ("bentoml==1.4.40",)),
    System("triton", "Triton, generate() in batches", "triton_server"),
)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    last = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
    raise RuntimeError(f"it did not start; its exit code is {process.poll()}, its last line {last[:300]!r}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its session: some peers leave children behind."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
