"""The embedded server with toy models: start, supervision, restart and complete removal."""

from __future__ import annotations

import json
import queue
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from captioner.errors import CaptionerError, StartupRefused
from captioner.launcher import supervisor, triton_process, triton_wheel
from captioner.launcher.ports import choose_ports
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import ModelControl
from tests.conftest import TOY_CONFIG, TOY_MODEL, Start, write_model
from tests.launcher.toys import double, port_of, traces, wait_until
from tests.support.processes import read_until, running

pytestmark = pytest.mark.triton

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
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


def test_stop_lets_a_request_finish_and_removes_every_process_and_file_of_this_server_only(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path / "slow", "toy", TOY_MODEL.replace("xs =", "__import__('time').sleep(1); xs ="))
    write_model(tmp_path / "other", "toy")
    other = start_triton(tmp_path / "other", models=("toy",))
    seen: list[tuple[list[str], float]] = []
    log_path = tmp_path / "logs" / "server.log"
    server = start_triton(tmp_path / "slow", models=("toy",), log_path=log_path, progress=lambda *now: seen.append(now))
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as metrics:
        assert b"nv_inference_request_success" in metrics.read()
    assert len(traces(port_of(server))) == 5, "shared memory, folder, reaper, server and stub"
    pid = server.pid
    assert pid is not None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(double, server)
        time.sleep(0.5)
        server.stop()
        assert answer.result(10) == 42.0
    assert not traces(port_of(server))
    assert ["toy"] in [loading for loading, _ in seen]
    assert "successfully loaded 'toy'" in log_path.read_text()
    assert server.pid is None
    assert double(other) == 42.0


@pytest.mark.parametrize("name", ["HTTP", "gRPC", "metrics"])
def test_a_port_in_use_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, "toy")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        option = f"--{name.lower()}-port"
        with pytest.raises(StartupRefused, match=rf"port {port} \({name}\) is in use; choose another with {option}"):
            TritonServer(tmp_path, models=("toy",), **{f"{name.lower()}_port": port})


def test_a_port_that_another_program_opens_during_the_start_is_refused(
    tmp_path: Path, start_triton: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "toy")
    ports = choose_ports("127.0.0.1", {"http_port": 0, "grpc_port": 0, "metrics_port": 0})
    monkeypatch.setattr(supervisor, "choose_ports", lambda _, ports: ports)
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
    with pytest.raises(StartupRefused, match=f"{tmp_path} has none of captioner, caption, preprocess, vision_encoder"):
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
def test_a_model_that_fails_to_load_is_reported_with_the_reason_before_triton_gives_up(
    tmp_path: Path, start_triton: Start, model: str | None, config: str, reason: str
) -> None:
    version = write_model(tmp_path, "toy", model or "", config)
    if model is None:
        (version / "model.py").unlink()
    write_model(tmp_path, "sound")
    port = choose_ports("127.0.0.1", {"HTTP": 0})["HTTP"]
    begin = time.monotonic()
    with pytest.raises(StartupRefused, match=f"^model 'toy' cannot be loaded: {reason}.*log: {tmp_path}"):
        start_triton(tmp_path, models=("sound", "toy"), http_port=port)
    assert time.monotonic() - begin < 10
    assert not traces(port)


def test_a_model_that_exceeds_the_start_limit_is_named(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy", "import time; time.sleep(60)")
    with pytest.raises(StartupRefused, match=r"not ready after \d s, still loading: toy; the server's log"):
        start_triton(tmp_path, models=("toy",), start_seconds=1)


def test_loading_and_unloading_a_version_does_not_count_as_a_dead_stub(tmp_path: Path, start_triton: Start) -> None:
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


def test_model_control_and_shared_memory_need_the_admin_key(tmp_path: Path, start_triton: Start) -> None:
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


def test_a_model_sees_the_user_agent_of_grpc_requests_only(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "echo", PARAMETERS_MODEL, DECOUPLED)
    server = start_triton(tmp_path, models=("echo",))
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        tensor = triton.InferInput("x", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"a"], object))
        client.async_stream_infer("echo", [tensor], parameters={"seed": 3})
        by_grpc = json.loads(answers.get(timeout=10).as_numpy("y").item())
    body = json.dumps({"x": "a", "seed": 3}).encode()
    url = f"http://{server.http_address}/v2/models/echo/generate"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        by_http = json.loads(json.load(answer)["y"])
    assert by_http == {"seed": 3}
    assert by_grpc.keys() == {"seed", "user-agent"}
    assert by_grpc["user-agent"].startswith("grpc-")


LAUNCHER = """
import sys
from pathlib import Path
from captioner.launcher.supervisor import TritonServer

with TritonServer(
    Path(sys.argv[1]), models=("toy",), http_port=int(sys.argv[2]), grpc_port=0, metrics_port=0, drain_seconds=5,
    log_path=Path(sys.argv[1]) / "log", progress=lambda loading, _: print("loading", loading, flush=True),
) as server:
    print("ready", flush=True)
    server.wait()
"""


def end_launcher(tmp_path: Path, moment: str, ending: signal.Signals, ignore: tuple[signal.Signals, ...] = ()) -> None:
    """Send `ending` to a launcher at `moment`; fail unless its server, reaper, shared memory and files disappear."""
    port = choose_ports("127.0.0.1", {"HTTP": 0})["HTTP"]
    write_model(tmp_path, "toy", "import time; time.sleep(0.5)\n" + TOY_MODEL)
    with running([sys.executable, "-c", LAUNCHER, str(tmp_path), str(port)], ignore=ignore) as launcher:
        read_until(launcher, moment)
        assert traces(port)
        launcher.send_signal(ending)
        launcher.wait(30)
        wait_until(lambda: not traces(port))


@pytest.mark.parametrize(
    ("moment", "ending"),
    [
        ("loading ['toy']", signal.SIGKILL),
        ("loading ['toy']", signal.SIGINT),
        ("loading ['toy']", signal.SIGTERM),
        ("loading ['toy']", signal.SIGHUP),
        pytest.param("ready", signal.SIGKILL, marks=pytest.mark.exhaustive),
        pytest.param("ready", signal.SIGINT, marks=pytest.mark.exhaustive),
        pytest.param("ready", signal.SIGTERM, marks=pytest.mark.exhaustive),
        pytest.param("ready", signal.SIGHUP, marks=pytest.mark.exhaustive),
    ],
)
def test_a_launcher_that_ends_or_dies_leaves_nothing_behind(
    tmp_path: Path, moment: str, ending: signal.Signals
) -> None:
    end_launcher(tmp_path, moment, ending)


def test_a_launcher_whose_parent_ignores_sigint_ends_on_sigterm(tmp_path: Path) -> None:
    """nohup and background shells start their children so."""
    end_launcher(tmp_path, "ready", signal.SIGTERM, ignore=(signal.SIGINT, signal.SIGHUP))


def test_a_server_on_all_addresses_is_reached_at_the_loopback_address() -> None:
    assert triton_process.reachable("0.0.0.0") == "127.0.0.1"
    assert triton_process.reachable("192.0.2.1") == "192.0.2.1"


def test_a_missing_libpython_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("find_libpython.find_libpython", lambda: None)
    with pytest.raises(StartupRefused, match=r"has no shared libpython3\.\d+\.so.*apt install libpython3"):
        triton_wheel.environment()


def test_a_missing_wheel_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StartupRefused, match="nvidia-pytriton, which brings tritonserver, is not installed"):
        triton_wheel.triton_root()


def test_a_python_version_without_a_stub_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(StartupRefused, match=r"this is Python 3\.13; Captioner needs Python 3\.10, 3\.11 or 3\.12"):
        triton_wheel.triton_root()


def test_a_large_form_is_refused_and_the_server_goes_on(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "double")
    server = start_triton(tmp_path, models=("double",))
    pid = server.pid
    for megabytes in (8, 64):
        url = f"http://{server.http_address}/v2/models/double/infer"
        request = urllib.request.Request(url, bytes(megabytes * 2**20), FORM)
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error 500"):
            urllib.request.urlopen(request, timeout=60)
    assert double(server, 3.0, "double") == 6.0
    assert (server.pid, server.restarts) == (pid, 0)
