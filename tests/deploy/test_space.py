"""The Space: its folder is complete, and its start command serves a caption on one port, in an empty home folder."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from captioner import NO_TELEMETRY
from captioner.wire import PAGE_PORT
from tests.support.processes import free_port, running
from tests.support.served import ROOT

FOLDER = ROOT / "deploy" / "space"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PHOTO = ROOT / "captioner" / "examples" / "cat.jpg"


def test_the_front_matter_names_the_port_that_the_container_opens() -> None:
    head = yaml.safe_load((FOLDER / "README.md").read_text().split("---\n")[1])
    assert (head["sdk"], head["app_port"]) == ("docker", PAGE_PORT)
    assert f"\nEXPOSE {PAGE_PORT}\n" in DOCKERFILE and f'"PORT", "{PAGE_PORT}"' in (FOLDER / "start.py").read_text()
    assert len(head["short_description"]) <= 60, "the Hub's limit"


def test_hadolint_finds_no_fault() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, FOLDER / "Dockerfile"], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_assembled_folder_has_what_the_dockerfile_installs_and_no_published_model(tmp_path: Path) -> None:
    subprocess.run(["sh", FOLDER / "assemble.sh", tmp_path / "space"], check=True, timeout=60)
    for name in ("README.md", "Dockerfile", "start.py", "pyproject.toml", "setup.py", "constraints.txt", "LICENSE"):
        assert (tmp_path / "space" / name).is_file(), name
    project = (tmp_path / "space" / "pyproject.toml").read_text()
    extra = re.findall(r"^ARG CAPTIONER_EXTRA=(.+)$", DOCKERFILE, re.MULTILINE)
    assert [f"\n{name} = [" in project for name in [*extra, "server-gpu"]] == [True, True]
    large = [path for path in (tmp_path / "space").rglob("*") if path.is_file() and path.stat().st_size > 10 * 2**20]
    assert all(path.suffix == ".safetensors" for path in large), "the Hub takes larger files by Git LFS only"
    assert {path.name for path in (tmp_path / "space" / "model_repository").glob("*/[0-9]*")} == {"1"}


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_start_command_serves_a_caption_in_an_empty_home_and_stops_cleanly(tmp_path: Path) -> None:
    (text,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, script = json.loads(text)
    assert (program, script) == ("python", "/opt/captioner/start.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPTIONER_", "XDG_"))}
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    variables = {name: value for name, value in kept.items() if name not in NO_TELEMETRY} | {
        "HOME": str(home),
        "PORT": str(port),
        "MODEL_REPOSITORY": str(home / "models"),  # in a checkout, the default is the checkout's
    }
    log = tmp_path / "log"
    command = (
        f"exec {shlex.quote(sys.executable)} {shlex.quote(str(FOLDER / 'start.py'))} > {shlex.quote(str(log))} 2>&1"
    )
    with running(["sh", "-c", command], env=variables, seconds=850) as process:
        address = f"http://127.0.0.1:{port}"
        wait_ready(process, f"{address}/readyz", log)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        body = json.dumps({"image": base64.b64encode(PHOTO.read_bytes()).decode()}).encode()
        request = urllib.request.Request(f"{address}/v1/captions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["caption"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def wait_ready(process: subprocess.Popen[Any], url: str, log: Path) -> None:
    """Wait until `url` answers 200."""
    end = time.monotonic() + 700
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
