"""Every command and program in the README runs, and the caption it prints is the one that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import Serve
from tests.support.served import ROOT, Served

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if language == "sh"]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
# Shown elsewhere: `make run` by test_up.py, the stack by test_compose.py, another model by
# test_follow.py, settings by test_captions.py.
ELSEWHERE = ("make run", "docker compose", ".venv/bin/captioner publish", "CAPTIONER_PRECISION")


@pytest.fixture(scope="module")
def page(served: Served, serve_page: Serve) -> str:
    return serve_page(served.grpc)


def here(text: str, served: Served, page: str = "") -> str:
    """The same with this test's server and interpreter."""
    addresses = {
        "127.0.0.1:8000": served.http,
        "127.0.0.1:8001": served.grpc,
        "127.0.0.1:8002": served.metrics,
        "http://127.0.0.1:7860": page,
    }
    text = text.replace("/tmp/", "$TMPDIR/")
    for shown, used in addresses.items():
        text = text.replace(shown, used)
    return text.replace(
        ".venv/bin/captioner caption", f"{sys.executable} -m captioner.cli caption --server {served.grpc}"
    )


def run(command: list[str], tmp_path: Path) -> str:
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "text"}
    assert len(COMMANDS) == 10 and len(PROGRAMS) == 3


@pytest.mark.triton
@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(ELSEWHERE)])
def test_a_command_runs(served: Served, page: str, tmp_path: Path, command: str) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", here(command, served, page)], tmp_path).strip()
    assert said or (tmp_path / "captions.jsonl").read_text().count('"caption": "ohwx, ') == 4


@pytest.mark.triton
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(served: Served, page: str, tmp_path: Path, program: str) -> None:
    assert run([sys.executable, "-c", here(program, served, page)], tmp_path).strip()


@pytest.mark.triton
def test_the_caption_that_is_shown_is_the_caption_that_comes(served: Served, tmp_path: Path) -> None:
    shown = next(text for language, text in BLOCKS if language == "text").strip()
    command = next(command for command in COMMANDS if "captioner caption" in command)
    assert run(["bash", "-c", here(command, served)], tmp_path).strip() == shown


def test_the_tree_is_the_tree() -> None:
    tree = [text for language, text in BLOCKS if language == "text"][-1]
    top, missing = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        top = name if not line.startswith(" ") else top
        path = ROOT / name if not line.startswith(" ") else ROOT / top / name
        if not path.exists():
            missing.append(name)
    assert not missing
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    shown = {line.split("/")[0] for line in tree.splitlines() if not line.startswith(" ")}
    assert folders - shown <= {"build", "captioner.egg-info", "dist"}


def test_links_into_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
