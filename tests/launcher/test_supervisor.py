"""The embedded server with toy models: it starts, heals and goes without a trace, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from captioner.errors import CaptionerError, StartupRefused
from captioner.launcher import supervisor, triton_process, triton_wheel
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import ModelControl
from tests.conftest import TOY_CONFIG, TOY_MODEL, Start, write_model

pytestmark = pytest.mark.triton

DECOUPLED = """
backend: "python"
model_transaction_policy { decoupled: true }
input [{ name: "x" data_type: TYPE_STRING dims: [1] }]
output [{ name: "y" data_type: TYPE_STRING dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
PARAMETERS_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            tensor = pb_utils.Tensor("y", np.array([request.parameters()], object))
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([tensor]), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def double(server: TritonServer, x: float = 21.0, model: str = "toy") -> float:
    with triton.InferenceServerClient(server.grpc_address) as client:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[x]], np.float32))
        return float(client.infer(model, [tensor], client_timeout=30).as_numpy("y").item())


def traces(http_port: int) -> set[str]:
    """What our server on this port has on this machine: processes, shared memory and its runtime folder."""
    mark = f"captioner-{http_port}-"
    found = {str(path) for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob(f"{mark}*")}
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in (text := cmdline.read_text().replace("\0", " ")):
                found.add(f"process {cmdline.parent.name}: {text[:200]}")
    return found


def port_of(server: TritonServer) -> int:
    return int(server.http_address.rpartition(":")[2])


def wait_until(true: Callable[[], bool], seconds: float = 15.0) -> float:
    """How long it took until `true()`, in seconds."""
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < seconds, f"not true within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begin


def stub_of(server: TritonServer, instance: str = "toy_0_0") -> int:
    """The process id of a model's instance."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = cmdline.read_text().split("\0")
        except OSError:
            continue
        if arguments[0].endswith("triton_python_backend_stub") and {instance, str(server.pid)} <= set(arguments):
            return int(cmdline.parent.name)
    raise AssertionError(f"no stub runs {instance}")


def test_a_server_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_model(tmp_path, "toy")
    seen: list[tuple[list[str], float]] = []
    with TritonServer(
        tmp_path,
        models=("toy",),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        log_path=tmp_path / "logs" / "server.log",
        progress=lambda loading, seconds: seen.append((loading, seconds)),
    ) as server:
        assert double(server) == 42.0
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as metrics:
            assert b"nv_inference_request_success" in metrics.read()
        assert len(traces(port_of(server))) == 5, "shared memory, folder, guard, server and stub are to be seen"
        assert server.pid is not None
    assert not traces(port_of(server))
    assert ["toy"] in [loading for loading, _ in seen]
    assert "successfully loaded 'toy'" in server.log_path.read_text()
    assert server.pid is None


def test_two_servers_side_by_side_leave_each_other_alone(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    first, second = (start_triton(tmp_path, models=("toy",)) for _ in range(2))
    first.stop()
    assert double(second) == 42.0


@pytest.mark.parametrize("name", ["HTTP", "gRPC", "metrics"])
def test_a_taken_port_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, "toy")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        option = f"--{name.lower()}-port"
        with pytest.raises(StartupRefused, match=rf"port {port} \({name}\) is taken; choose another with {option}"):
            TritonServer(tmp_path, models=("toy",), **{f"{name.lower()}_port": port})


def test_a_port_that_is_taken_while_the_server_starts_is_refused_too(
    tmp_path: Path, start_triton: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "toy")
    ports = supervisor.take_ports("127.0.0.1", {"http_port": 0, "grpc_port": 0, "metrics_port": 0})
    monkeypatch.setattr(supervisor, "take_ports", lambda _, ports: ports)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", ports["metrics_port"]))
        holder.listen()
        with pytest.raises(
            StartupRefused,
            match=rf"the Metrics service cannot start: .*:{ports['metrics_port']}' already in use",
        ):
            start_triton(tmp_path, models=("toy",), **ports)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_outside_the_range_is_refused_by_option(tmp_path: Path, port: int) -> None:
    write_model(tmp_path, "toy")
    with pytest.raises(StartupRefused, match=rf"--http-port is {port}; it must be from 0 to 65535"):
        TritonServer(tmp_path, models=("toy",), http_port=port)


def test_a_repository_without_the_models_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(StartupRefused, match=f"{tmp_path} holds none of captioner, image_encoder"):
        TritonServer(tmp_path)
    with pytest.raises(StartupRefused, match=f"{tmp_path}/absent does not exist"):
        TritonServer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        (
            'class TritonPythonModel:\n    def initialize(self, args): raise ValueError("no manifest")',
            TOY_CONFIG,
            "ValueError: no manifest",
        ),
        ("import no_such_module", TOY_CONFIG, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os._exit(3)", TOY_CONFIG, "Stub process 'toy_0_0' is not healthy"),
        (None, TOY_CONFIG, "Python model file not found"),
        (TOY_MODEL, "nonsense: 1", 'failed to read text proto .* has no field named "nonsense"'),
        (
            TOY_MODEL,
            TOY_CONFIG.replace("python", "pythn"),
            "unable to find backend library for backend 'pythn'",
        ),
    ],
    ids=["raises", "misses a module", "exits", "has no model.py", "has a bad config", "names no backend"],
)
def test_the_reason_why_a_model_does_not_load_is_told_at_once(
    tmp_path: Path, start_triton: Start, model: str | None, config: str, reason: str
) -> None:
    version = write_model(tmp_path, "toy", model or "", config)
    if model is None:
        (version / "model.py").unlink()
    write_model(tmp_path, "sound")
    port = supervisor.take_ports("127.0.0.1", {"HTTP": 0})["HTTP"]
    begin = time.monotonic()
    with pytest.raises(StartupRefused, match=f"^model 'toy' cannot be loaded: {reason}.*log: {tmp_path}"):
        start_triton(tmp_path, models=("sound", "toy"), http_port=port)
    assert time.monotonic() - begin < 10
    assert not traces(port)


def test_a_model_that_loads_for_too_long_is_named(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy", "import time; time.sleep(60)")
    with pytest.raises(StartupRefused, match=r"not ready after \d s, still loading: toy; the server's log"):
        start_triton(tmp_path, models=("toy",), start_seconds=2)


def test_a_killed_stub_is_replaced_within_ten_seconds(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server = start_triton(tmp_path, models=("toy",), on_restart=reasons.append)
    time.sleep(1)  # the supervisor has to have seen the stub alive to know its name
    os.kill(stub_of(server), signal.SIGKILL)
    assert wait_until(lambda: server.restarts == 1 and answers(server), 10) < 10
    assert reasons == ["the process of toy_0_0 died"]


def test_a_killed_server_is_replaced(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server = start_triton(tmp_path, models=("toy",), on_restart=reasons.append)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and answers(server))
    assert reasons == ["tritonserver ended with exit code -9"]


def test_a_probe_that_fails_twice_in_a_row_restarts_the_server(tmp_path: Path, start_triton: Start) -> None:
    """The stub lives and hangs: only asking it tells."""
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server: TritonServer

    def probe() -> bool:
        return answers(server, timeout=0.5)

    server = start_triton(tmp_path, models=("toy",), probe=probe, probe_seconds=0.2, on_restart=reasons.append)
    os.kill(stub_of(server), signal.SIGSTOP)
    wait_until(lambda: server.restarts == 1 and answers(server))
    assert reasons == ["the probe failed 2 times in a row"]


def test_a_probe_that_raises_is_told_to_whoever_waits(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",), probe=lambda: 1 // 0 == 1, probe_seconds=0.1)
    with pytest.raises(StartupRefused, match="no longer watched: ZeroDivisionError"):
        server.wait(10)


@pytest.mark.slow
def test_restarts_that_do_not_help_end_with_a_sentence(tmp_path: Path, start_triton: Start) -> None:
    dying = "import os, threading\nthreading.Timer(1, os._exit, [1]).start()\n" + TOY_MODEL
    write_model(tmp_path, "toy", dying)
    server = start_triton(tmp_path, models=("toy",))
    with pytest.raises(StartupRefused, match=r"restarted 5 times in 5 minutes and failed again: .*died; its log"):
        server.wait(60)
    assert server.restarts == 5
    assert not traces(port_of(server))


def test_a_version_can_be_loaded_and_unloaded_and_that_is_no_death(tmp_path: Path, start_triton: Start) -> None:
    version = write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",))
    control = ModelControl(server.grpc_address, server.admin_key)
    version.with_name("2").mkdir()
    (version.with_name("2") / "model.py").write_text(TOY_MODEL.replace("2 * x", "3 * x"))
    control.load(tmp_path, "toy", [1, 2])
    assert double(server) == 63.0
    control.load(tmp_path, "toy", [1])
    assert control.wait_unloaded("toy", 2, 10)
    assert double(server) == 42.0
    assert server.restarts == 0
    with pytest.raises(CaptionerError, match="toy"):
        control.load(tmp_path, "toy", [7])
    assert double(server) == 42.0


def test_model_control_and_shared_memory_are_open_to_the_key_only(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",))
    with triton.InferenceServerClient(server.grpc_address) as client:
        for call in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_trace_settings,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                call()
            call(headers={"triton-grpc-protocol-captioner-admin": server.admin_key})
        client.get_inference_statistics("toy")
    request = urllib.request.Request(f"http://{server.http_address}/v2/repository/index", b"")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=10)
    request.add_header("captioner-admin", server.admin_key)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)[0]["state"] == "READY"


def test_a_model_sees_the_user_agent_of_grpc_and_none_of_http(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "door", PARAMETERS_MODEL, DECOUPLED)
    server = start_triton(tmp_path, models=("door",))
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        tensor = triton.InferInput("x", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"a"], object))
        client.async_stream_infer("door", [tensor], parameters={"seed": 3})
        by_grpc = json.loads(answers.get(timeout=10).as_numpy("y").item())
    body = json.dumps({"x": "a", "seed": 3}).encode()
    url = f"http://{server.http_address}/v2/models/door/generate"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        by_http = json.loads(json.load(answer)["y"])
    assert by_http == {"seed": 3}
    assert by_grpc.keys() == {"seed", "user-agent"}
    assert by_grpc["user-agent"].startswith("grpc-")


def test_a_request_in_flight_is_answered_before_the_server_stops(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy", TOY_MODEL.replace("xs =", "__import__('time').sleep(1.5); xs ="))
    server = start_triton(tmp_path, models=("toy",))
    answer: list[float] = []
    asking = threading.Thread(target=lambda: answer.append(double(server)))
    asking.start()
    time.sleep(0.5)
    server.stop()
    asking.join()
    assert answer == [42.0]


LAUNCHER = """
import sys
from pathlib import Path
from captioner.launcher.supervisor import TritonServer

with TritonServer(
    Path(sys.argv[1]), models=("toy",), http_port=int(sys.argv[2]), grpc_port=0, metrics_port=0,
    log_path=Path(sys.argv[1]) / "log", progress=lambda loading, _: print("loading", loading, flush=True),
) as server:
    print("ready", flush=True)
    server.wait()
"""


@pytest.mark.parametrize("moment", ["loading ['toy']", "ready"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_however_the_launcher_ends_nothing_is_left(tmp_path: Path, ending: signal.Signals, moment: str) -> None:
    port = supervisor.take_ports("127.0.0.1", {"HTTP": 0})["HTTP"]
    write_model(tmp_path, "toy", "import time; time.sleep(0.5)\n" + TOY_MODEL)
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as launcher:
        assert launcher.stdout is not None
        assert moment in (line.strip() for line in launcher.stdout), "the launcher did not come that far"
        assert traces(port)
        launcher.send_signal(ending)
    wait_until(lambda: not traces(port))


def test_a_killed_guard_takes_the_server_with_it(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",))
    first = server.pid
    assert first is not None
    guard = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and answers(server))
    assert server.pid != first
    with contextlib.suppress(FileNotFoundError):  # or it waits for pid 1 to reap it
        assert " Z " in Path(f"/proc/{first}/stat").read_text()
    server.stop()
    assert not traces(port_of(server))


def test_the_host_that_answers_for_all_addresses_is_the_loopback() -> None:
    assert triton_process.reachable("0.0.0.0") == "127.0.0.1"
    assert triton_process.reachable("192.0.2.1") == "192.0.2.1"


def test_a_missing_libpython_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("find_libpython.find_libpython", lambda: None)
    with pytest.raises(StartupRefused, match=r"has no shared libpython3\.\d+\.so.*apt install libpython3"):
        triton_wheel.environment()


def test_a_missing_wheel_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StartupRefused, match="nvidia-pytriton, which brings tritonserver, is not installed"):
        triton_wheel.triton_root()


def test_a_python_without_a_stub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(StartupRefused, match=r"this is Python 3\.13; Captioner needs Python 3\.10, 3\.11 or 3\.12"):
        triton_wheel.triton_root()


def answers(server: TritonServer, timeout: float = 5) -> bool:
    """Whether the toy model works now."""
    with triton.InferenceServerClient(server.grpc_address) as client:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[1]], np.float32))
        try:
            return client.infer("toy", [tensor], client_timeout=timeout) is not None
        except InferenceServerException:
            return False
