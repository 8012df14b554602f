"""Privacy: nothing is reported home, nothing is written outside the documented files, no request gets into a log."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from captioner import NO_TELEMETRY
from captioner.errors import CaptionerError, traced
from captioner.launcher.ports import choose_ports
from tests.support.pages import BROKEN, PHOTO
from tests.support.served import ROOT

MARK = "Zq7MarkyX"  # 9 characters, so that repeated it has the same base64 at every repetition
MARKS = MARK, base64.b64encode(MARK.encode()).decode()
TEXT = MARK * 20
# Every process of the server and the page runs under strace, which sees the system calls of C++ libraries too. A name
# is looked up over port 53 or over systemd's socket. Every other address outside this machine counts as well.
CALLS = "trace=connect,sendto,sendmsg,sendmmsg"
OUTSIDE = re.compile(
    r"htons\(53\)|systemd/resolve"
    r'|inet_addr\("(?!127\.|0\.0\.0\.0)|inet_pton\(AF_INET6, "(?!::1"|::"|::ffff:127\.)'
)


def clean_environment(home: Path) -> dict[str, str]:
    """The environment of a user without settings whose home is `home`."""
    kept = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    return {name: value for name, value in kept.items() if not name.startswith("XDG_")} | {"HOME": str(home)}


@dataclass(frozen=True)
class Evidence:
    """What is left of a run of `captioner up`."""

    home: Path
    calls: str  # system calls with addresses
    logs: str  # the output of all processes
    answers: dict[str, tuple[int, str]]  # by what was asked: status and body
    admin_key: str


def files_in(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("package", ["captioner", "export", "frontend", "benchmarks", "training"])
def test_every_package_turns_the_reports_of_its_libraries_off_and_keeps_an_operators_setting(
    package: str, tmp_path: Path
) -> None:
    code = f"import os, {package}; print(*(os.environ[name] for name in {list(NO_TELEMETRY)}))"
    for given, expected in (({}, "1"), ({"DO_NOT_TRACK": "0"}, "0"), ({"DO_NOT_TRACK": ""}, "1")):
        variables = clean_environment(tmp_path) | given
        said = subprocess.run([sys.executable, "-c", code], env=variables, cwd=ROOT, capture_output=True, text=True)
        assert said.stdout.split() == [expected, *list(NO_TELEMETRY.values())[1:]], said.stderr


def test_a_session_of_onnx_runtime_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    code = """
from captioner.artifacts.onnx_session import open_session
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
open_session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())
"""
    subprocess.run([sys.executable, "-c", code], env=clean_environment(tmp_path), cwd=ROOT, check=True, timeout=60)
    assert files_in(tmp_path) == set()


def test_the_container_turns_off_the_reports_of_tritons_own_onnx_runtime() -> None:
    name = "ORT_DISABLE_TELEMETRY"
    assert f"{name}={NO_TELEMETRY[name]} " in (ROOT / "Dockerfile").read_text()


def test_a_logged_error_has_its_place_and_not_its_message() -> None:
    try:
        raise CaptionerError(MARK)
    except CaptionerError as error:
        text = traced(error)
    assert MARK not in text
    assert text.startswith("CaptionerError\n") and f'"{__file__}", line' in text


def ask(url: str, body: object = None, content_type: str = "application/json") -> tuple[int, str]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def marked_requests(page: str, triton: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """Look at the page, then send requests that succeed, are refused and fail, each with marked texts and bytes."""
    for path in ("/", "/browser/main.js", "/v1/models", "/config"):
        yield path, ask(page + path)
    photo = base64.b64encode(PHOTO.read_bytes() + b"\0" * (-PHOTO.stat().st_size % 3) + TEXT.encode()).decode()
    bodies = {
        "caption": {"image": photo, "prompt": TEXT[:30]},
        "deadline": {"image": base64.b64encode(PHOTO.read_bytes() + TEXT.encode()).decode(), "deadline_ms": 1},
        "long prompt": {"image": photo, "prompt": TEXT * 20},
        "no image": {"image": base64.b64encode(TEXT.encode()).decode()},
        "broken": {"image": base64.b64encode(BROKEN + b"\0" * (-len(BROKEN) % 3) + TEXT.encode()).decode()},
        "url": {"image": f"http://{MARK}.example/{TEXT}"},
        "style": {"image": photo, "style": TEXT},
        "stop": {"image": photo, "stop": TEXT * 50},
        "unknown": {"image": photo, TEXT: TEXT},
        "wrong type": {"image": photo, "max_tokens": TEXT},
    }
    for name, body in bodies.items():
        yield name, ask(f"{page}/v1/captions", body)
        yield f"{name}, Triton", ask(f"{triton}/v2/models/captioner/generate", body)
    for address in (f"{page}/v1/captions", f"{triton}/v2/models/captioner/generate"):
        yield address, ask(address, f'{{"image": "{TEXT}'.encode())
    yield "chat", ask(f"{page}/v1/chat/completions", {"model": TEXT, "messages": [{"role": TEXT, "content": TEXT}]})
    yield "event", ask(f"{page}/gradio_api/run/predict", {"data": [TEXT], "fn_index": 0})
    yield "path", ask(f"{page}/gradio_api/call/x", {"data": [TEXT]})


@pytest.fixture(scope="module")
def evidence(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """One run of `captioner up` in an empty home, with a page view and marked requests, until it has ended."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    copy = shutil.copytree(repository, work / "repository", symlinks=True)
    ports = choose_ports("127.0.0.1", {"HTTP": 0, "gRPC": 0, "metrics": 0, "page": 0})
    trace, output = work / "calls", work / "output"
    # -D: strace is not the parent, so that signals reach `captioner up`.
    command = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", CALLS, "-e", "signal=none", "-o", str(trace)]
    command += [sys.executable, "-m", "captioner.cli", "up", "--repository", str(copy)]
    command += [f"--{name.lower()}-port={port}" for name, port in ports.items()]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=clean_environment(home), cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while b"ready:" not in output.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        addresses = (f"http://127.0.0.1:{ports[name]}" for name in ("page", "HTTP"))
        answers = dict(marked_requests(*addresses))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    logs = list(home.rglob("server-*.log"))
    assert logs, "the server's log is where docs/troubleshooting.md says"
    text = "".join(path.read_text() for path in [output, *logs])
    return Evidence(home, trace.read_text(), text, answers, (copy / ".admin-key").read_text())


@pytest.mark.triton
def test_a_start_a_page_view_and_a_caption_write_only_the_servers_log_into_the_home_folder(evidence: Evidence) -> None:
    assert evidence.answers["/"][0] == evidence.answers["caption"][0] == 200
    (log,) = files_in(evidence.home)
    assert re.fullmatch(r"\.local/state/captioner/server-\d+\.log", log)


@pytest.mark.triton
def test_no_name_is_looked_up_and_no_other_machine_is_addressed(evidence: Evidence) -> None:
    assert evidence.calls.count('inet_addr("127.0.0.1")') > 3, "strace saw nothing"
    assert [line for line in evidence.calls.splitlines() if OUTSIDE.search(line)] == []


@pytest.mark.triton
def test_no_prompt_no_image_and_no_key_gets_into_a_log(evidence: Evidence) -> None:
    statuses = {name: status for name, (status, _) in evidence.answers.items()}
    assert statuses["caption"] == statuses["caption, Triton"] == 200
    captioned = {name for name, status in statuses.items() if status == 200 and not name.startswith("/")}
    assert captioned == {"caption", "caption, Triton"}, "every other request is refused or fails"
    assert "captioner-embedded" in evidence.logs, "the log is the server's"
    secrets = *MARKS, evidence.admin_key
    assert [line for line in evidence.logs.splitlines() if any(secret in line for secret in secrets)] == []


@pytest.mark.triton
def test_an_error_message_quotes_at_most_80_characters(evidence: Evidence) -> None:
    refused = {name: body for name, (status, body) in evidence.answers.items() if status != 200}
    assert any(MARK in body for body in refused.values())
    assert [name for name, body in refused.items() if MARK * 9 in body] == []
