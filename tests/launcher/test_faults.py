"""What the supervisor does when a part of the embedded server dies, hangs, or does not start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from captioner.artifacts.repository_templates import templates
from captioner.errors import StartupRefused
from captioner.launcher import supervisor
from captioner.launcher.reaper import remove_files
from captioner.launcher.stubs import Stubs, children
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import ModelControl
from captioner.wire import CAPTIONER, UNARY, UNARY_REQUESTS
from tests.conftest import TOY_MODEL, Start, write_model
from tests.launcher.toys import answers, double, port_of, stub_of, stubs_of, traces, wait_until
from tests.support.processes import running
from tests.support.served import Served, metric
from tests.support.unary import inputs

pytestmark = pytest.mark.triton

SECONDS = 60.0  # the bound of a wait: a busy machine starts a server in 20 s
DECOUPLED = """
backend: "python"
max_batch_size: 4
model_transaction_policy { decoupled: true }
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
# A captioner that gives the image back as the caption, except of one image, which it never answers.
ECHOES_OR_HOLDS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    held = []

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            if image[0] == b"hold":
                self.held.append(sender)
                continue
            response = pb_utils.InferenceResponse([pb_utils.Tensor(name, image) for name in ("caption", "details")])
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# Like the import of a large library, it keeps the stub's other threads from noticing that the server has ended.
HOLDS_THE_INTERPRETER = "import ctypes\nctypes.PyDLL(None).sleep(60)\n"
ENDS_WITH_PARENT = "from captioner.parent import end_with_parent\nend_with_parent()\n" + TOY_MODEL


def reaper_of(server: TritonServer) -> int:
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_model_whose_process_died_is_loaded_anew_alone_with_the_versions_that_were_loaded(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "other")
    second = write_model(tmp_path, "toy").with_name("2")
    second.mkdir()
    (second / "model.py").write_text(TOY_MODEL.replace("2 * x", "3 * x"))
    lines: list[str] = []
    server = start_triton(tmp_path, models=("toy", "other"), log=lines.append)
    control = ModelControl(server.grpc_address, server.admin_key)
    control.load(tmp_path, "toy", [1, 2])
    time.sleep(1.5)  # the supervisor looks for new stubs once a second
    first, other = server.pid, stub_of(server, "other_0_0")
    os.kill(stub_of(server), signal.SIGKILL)
    wait_until(lambda: server.reloads == 1 and answers(server), SECONDS)
    assert (server.restarts, server.pid, stub_of(server, "other_0_0")) == (0, first, other)
    assert lines == ["the process of toy_0_0 died; the model is loaded anew"]
    assert control.loaded("toy") == {1, 2}
    assert double(server) == 63.0


def test_after_three_reloads_of_a_model_the_server_is_restarted(
    tmp_path: Path, start_triton: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_MAX_RELOADS", 1)
    write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",))
    os.kill(stub_of(server), signal.SIGKILL)
    wait_until(lambda: server.reloads == 1 and answers(server), SECONDS)
    os.kill(living_stub(server), signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    assert server.reloads == 1


def living_stub(server: TritonServer, instance: str = "toy_0_0") -> int:
    assert server.pid is not None
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server.pid)}
    (pid,) = (pid for pid, command in commands.items() if instance.encode() in command.split(b"\0"))
    return pid


def test_a_model_that_cannot_be_loaded_anew_restarts_the_server(tmp_path: Path, start_triton: Start) -> None:
    fatal = tmp_path / "fatal"
    write_model(
        tmp_path, "toy", f"import os\nif os.path.exists({str(fatal)!r}): raise ValueError('fatal')\n{TOY_MODEL}"
    )
    lines: list[str] = []
    server = start_triton(tmp_path, models=("toy",), on_restart=lambda _: fatal.unlink(), log=lines.append)
    fatal.touch()
    os.kill(stub_of(server), signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    assert "the model cannot be loaded anew" in lines[0] and "fatal" in lines[0]


def test_the_death_of_a_decoupled_model_restarts_the_server_because_its_streams_would_hang(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "toy", config=DECOUPLED)
    reasons: list[str] = []
    server = start_triton(tmp_path, models=("toy",), on_restart=reasons.append)
    first = server.pid
    os.kill(stub_of(server), signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and server.pid not in (None, first), SECONDS)
    assert reasons == ["the process of toy_0_0 died"]


def test_the_death_of_caption_restarts_the_server_only_while_requests_would_hang(
    tmp_path: Path, start_triton: Start
) -> None:
    shutil.copytree(templates() / UNARY, tmp_path / UNARY)
    write_model(tmp_path, CAPTIONER, ECHOES_OR_HOLDS)
    shutil.copy(templates() / CAPTIONER / "config.pbtxt", tmp_path / CAPTIONER)
    server = start_triton(tmp_path, models=(UNARY, CAPTIONER))
    first = server.pid
    for reloads in (1, 2):
        os.kill(stub_of(server, "caption_0_0"), signal.SIGKILL)
        wait_until(lambda: server.reloads == reloads, SECONDS)  # noqa: B023
        assert caption(server, "a toy") == "a toy"
        time.sleep(1.5)  # the supervisor looks for new stubs once a second
    assert (server.restarts, server.pid) == (0, first)
    with ThreadPoolExecutor() as threads:
        held = threads.submit(caption, server, "hold")
        served = Served(server.grpc_address, server.http_address, server.metrics_address)
        wait_until(lambda: metric(served, UNARY_REQUESTS) == 1, SECONDS)
        os.kill(living_stub(server, "caption_0_0"), signal.SIGKILL)
        with pytest.raises(InferenceServerException):
            held.result(SECONDS)
    wait_until(lambda: server.restarts == 1 and captions(server), SECONDS)
    assert server.reloads == 2


def captions(server: TritonServer) -> bool:
    with contextlib.suppress(InferenceServerException):
        return caption(server, "a toy") == "a toy"
    return False


def caption(server: TritonServer, image: str) -> str:
    """Return the caption by `infer`."""
    with grpc.InferenceServerClient(server.grpc_address) as client:
        answer = client.infer(UNARY, inputs(grpc, image.encode()), client_timeout=SECONDS)
    text: str = answer.as_numpy("caption")[0].decode()
    return text


def test_a_killed_server_is_restarted(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server = start_triton(tmp_path, models=("toy",), on_restart=reasons.append)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    assert reasons == ["tritonserver ended with exit code -9"]


def test_a_killed_reaper_takes_the_server_and_every_stub_with_it_and_all_are_restarted(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "toy", ENDS_WITH_PARENT)
    server = start_triton(tmp_path, models=("toy",))
    first, stub = server.pid, stub_of(server)
    os.kill(reaper_of(server), signal.SIGKILL)
    wait_until(lambda: not runs(stub) and not runs(first), SECONDS)
    wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    wait_until(lambda: len(traces(port_of(server))) == 5, SECONDS)  # nothing of the first server is left


def test_a_stub_that_is_still_starting_when_the_reaper_is_killed_is_ended(tmp_path: Path) -> None:
    write_model(tmp_path, "toy", HOLDS_THE_INTERPRETER + ENDS_WITH_PARENT)
    server = TritonServer(
        tmp_path, models=("toy",), http_port=0, grpc_port=0, metrics_port=0, log_path=tmp_path / "log"
    )
    start = threading.Thread(target=server.start)
    start.start()
    wait_until(lambda: bool(stubs_of(server)), SECONDS)
    (stub,) = stubs_of(server)
    time.sleep(1)  # until it imports the model
    os.kill(reaper_of(server), signal.SIGKILL)
    wait_until(lambda: not runs(stub), 10)
    server.stop()
    start.join(SECONDS)
    server.stop()
    assert traces(port_of(server)) == set()


def runs(pid: int | None) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@pytest.mark.slow
def test_no_process_of_captioner_outlives_its_server_and_reaper(repository: Path, tmp_path: Path) -> None:
    """The launcher cannot help: it is killed first."""
    launcher = f"""
from pathlib import Path
from captioner.launcher.supervisor import TritonServer
with TritonServer(Path({str(repository)!r}), http_port=0, grpc_port=0, metrics_port=0,
                  log_path=Path({str(tmp_path / "log")!r})) as server:
    print(server.pid, flush=True)
    server.wait()
"""
    with running([sys.executable, "-c", launcher]) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        stubs = children(server)
        reaper = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
        assert len(stubs) >= 5
        reaper_command = Path(f"/proc/{reaper}/cmdline").read_text().split("\0")
        process.kill()
        os.kill(reaper, signal.SIGKILL)
        wait_until(lambda: not any(map(runs, {server, *stubs})), 20)
    # Nobody was left to remove the files, so a later server on the same port would be blamed for them.
    (prefix,) = (word.partition("=")[2] for word in reaper_command if word.startswith("--shm-prefix="))
    remove_files(prefix, Path(tempfile.gettempdir()) / prefix)


def test_a_hanging_stub_fails_two_probes_and_the_server_is_restarted(tmp_path: Path, start_triton: Start) -> None:
    """The stub is alive: only a request shows that it hangs."""
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server: TritonServer

    def probe() -> str | None:
        return None if answers(server, timeout=3) else "no answer"

    server = start_triton(tmp_path, models=("toy",), probe=probe, probe_seconds=0.2, on_restart=reasons.append)
    os.kill(stub_of(server), signal.SIGSTOP)
    wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    assert reasons == ["the probe failed 2 times in a row: no answer"]


def test_a_probe_that_raises_counts_as_failed_and_does_not_end_the_supervision(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "toy")
    reasons: list[str] = []
    server = start_triton(
        tmp_path, models=("toy",), probe=lambda: str(1 // 0), probe_seconds=0.1, on_restart=reasons.append
    )
    wait_until(lambda: server.restarts >= 1, SECONDS)
    assert "ZeroDivisionError" in reasons[0]


def test_a_probe_that_takes_long_delays_neither_the_detection_of_a_fault_nor_stop(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "toy")
    probing, release = threading.Event(), threading.Event()

    def probe() -> None:
        probing.set()
        release.wait(120)

    try:
        server = start_triton(tmp_path, models=("toy",), probe=probe, probe_seconds=0.1)
        assert probing.wait(SECONDS) and server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
        server.stop()
        assert not release.is_set()
    finally:
        release.set()


def test_a_process_name_cut_inside_a_character_does_not_end_the_supervision(
    tmp_path: Path, start_triton: Start
) -> None:
    write_model(tmp_path, "toy")
    renamed = "open('/proc/self/comm', 'wb').write(b'image-worker-n\\xc3'); print('named', flush=True); input()"
    with running([sys.executable, "-c", renamed]) as other:
        assert other.stdout is not None and other.stdout.readline() == "named\n"
        lines: list[str] = []
        server = start_triton(tmp_path, models=("toy",), log=lines.append)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == 1 and answers(server), SECONDS)
    assert lines == []


def test_a_start_that_a_signal_ends_is_tried_again_twice(tmp_path: Path, start_triton: Start) -> None:
    starts = tmp_path / "starts"
    killer = f"""
import os, signal
with open({str(starts)!r}, "a") as file: print(file=file)
if len(open({str(starts)!r}).read()) < FATAL: os.kill(os.getppid(), signal.SIGABRT)
"""
    write_model(tmp_path, "toy", killer.replace("FATAL", "3") + TOY_MODEL)
    lines: list[str] = []
    server = start_triton(tmp_path, models=("toy",), log=lines.append)
    assert len(lines) == 2 and all(
        "signal 6 ended tritonserver while it started; trying again" in line for line in lines
    )
    assert double(server) == 42.0
    server.stop()
    starts.unlink()
    (tmp_path / "toy" / "1" / "model.py").write_text(killer.replace("FATAL", "9"))
    with pytest.raises(StartupRefused, match="exit code -6"):
        start_triton(tmp_path, models=("toy",))
    assert len(starts.read_text()) == 3


def test_a_server_that_was_ready_once_is_never_given_up_and_the_waits_between_its_restarts_grow(
    tmp_path: Path, start_triton: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.launcher.backoff.FIRST_WAIT_S", 0.01)
    fatal = tmp_path / "fatal"
    write_model(
        tmp_path, "toy", f"import os\nif os.path.exists({str(fatal)!r}): raise ValueError('fatal')\n{TOY_MODEL}"
    )
    lines: list[str] = []
    server = start_triton(tmp_path, models=("toy",), log=lines.append)
    fatal.touch()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts >= 6, SECONDS)
    fatal.unlink()
    wait_until(lambda: answers(server), SECONDS)
    assert "failed 2 times in a row" in lines[-2] or "fatal" in lines[-1]
    assert not server.wait(0)


@pytest.mark.exhaustive
def test_a_stub_that_is_unloaded_is_not_dead(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "toy")
    server = start_triton(tmp_path, models=("toy",))
    control, stubs = ModelControl(server.grpc_address, server.admin_key), Stubs()
    assert server.pid is not None
    for _ in range(10):
        control.unload("toy")
        control.load(tmp_path, "toy", [1])
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert stubs.dead(server.pid) is None
            time.sleep(0.02)
    assert (server.restarts, server.reloads) == (0, 0)
