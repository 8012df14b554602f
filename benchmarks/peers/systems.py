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

from benchmarks.peers import environments, requests
from benchmarks.peers.requests import Connect, over_http
from benchmarks.published import Published, served_copy
from captioner.launcher.ports import choose_ports

START_S, STOP_S = 180.0, 60.0


MODULE = ("-m", "benchmarks.peers.servers.{name}_server", "{model}", "{port}")
BENTOML = ("-m", "bentoml", "serve", "benchmarks.peers.servers.bentoml_server:Captioner")


@dataclass(frozen=True)
class System:
    """One system.

    `connect`: how it is asked. `requirements`: what this environment lacks. `arguments` of its interpreter, in which
    {model} is the Hugging Face model, {repository} the published one, and {port} the port to serve at.
    """

    name: str
    title: str
    connect: Connect
    requirements: tuple[str, ...] = ()
    arguments: tuple[str, ...] = MODULE

    @contextmanager
    def running(self, model: Published, work: Path) -> Iterator[str]:
        """Yield the address HOST:PORT of the system while it serves `model`. Raises RuntimeError if it does not start.

        Its output goes to a log in the folder `work`.
        """
        port = choose_ports("127.0.0.1", {"peer": 0})["peer"]
        repository = work / "repository"
        if not repository.is_dir():
            served_copy(model, repository)
        values = {"name": self.name, "model": model.folder, "repository": repository, "port": port}
        python = environments.python(self.name, self.requirements)
        command = [str(python), *(argument.format(**values) for argument in self.arguments)]
        environment = os.environ | {
            "PEER_MODEL": str(model.folder),
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
    System(
        "captioner",
        "Captioner",
        requests.captioner_connect,
        arguments=("-m", "benchmarks.peers.servers.captioner_server", "{repository}", "{port}"),
    ),
    System("gradio", "Gradio Space", over_http(requests.gradio)),
    System("fastapi", "FastAPI", over_http(requests.fastapi)),
    System("litserve", "LitServe, batches", over_http(requests.litserve), ("litserve==0.2.19",)),
    System("ray", "Ray Serve, batches", over_http(requests.ray), ("ray[serve]==2.60.0",)),
    System(
        "bentoml",
        "BentoML, batches",
        over_http(requests.bentoml),
        ("bentoml==1.4.40",),
        (*BENTOML, "--host", "127.0.0.1", "--port", "{port}"),
    ),
    System("triton", "Triton, generate() in batches", requests.triton_connect),
)


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
