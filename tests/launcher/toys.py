"""Helpers for servers with toy models."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from captioner.launcher.supervisor import TritonServer


def double(server: TritonServer, x: float = 21.0, model: str = "toy") -> float:
    with triton.InferenceServerClient(server.grpc_address) as client:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[x]], np.float32))
        return float(client.infer(model, [tensor], client_timeout=30).as_numpy("y").item())


def traces(http_port: int) -> set[str]:
    """Return what the server on this port has on this machine: processes, shared memory and its runtime folder."""
    mark = f"captioner-{http_port}-"
    found = {str(path) for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob(f"{mark}*")}
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in (text := cmdline.read_text().replace("\0", " ")):
                found.add(f"process {cmdline.parent.name}: {text[:200]}")
    return found


def port_of(server: TritonServer) -> int:
    return int(server.http_address.rpartition(":")[2])


def wait_until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < seconds, f"not true within {seconds} s"
        time.sleep(0.05)


def stubs_of(server: TritonServer, instance: str = "toy_0_0") -> list[int]:
    """Return the process ids of a model's instance: none while it starts."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = cmdline.read_text().split("\0")
            if arguments[0].endswith("triton_python_backend_stub") and {instance, str(server.pid)} <= set(arguments):
                found.append(int(cmdline.parent.name))
    return found


def stub_of(server: TritonServer, instance: str = "toy_0_0") -> int:
    """Return the process id of a model's instance: with several versions, of one of them."""
    return stubs_of(server, instance)[0]


def answers(server: TritonServer, timeout: float = 5) -> bool:
    """Return whether the toy model works."""
    with triton.InferenceServerClient(server.grpc_address) as client:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[1]], np.float32))
        try:
            return client.infer("toy", [tensor], client_timeout=timeout) is not None
        except InferenceServerException:
            return False
