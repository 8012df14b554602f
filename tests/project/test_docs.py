"""The README and docs: every command and program runs, every link and file path leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import Serve
from tests.support.served import ROOT, Served

README = ROOT / "README.md"
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("api", "models", "bulk", "operations", "troubleshooting")]
GUIDES.append(ROOT / "SECURITY.md")
FOR_DEVELOPERS = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(path.name, *found) for path in (README, *GUIDES) for found in BLOCK.findall(path.read_text())]
COMMANDS = [pytest.param(text, id=name) for name, language, text in BLOCKS if language == "sh"]
PROGRAMS = [pytest.param(text, id=name) for name, language, text in BLOCKS if language == "python"]
# Shown elsewhere: `make run` and `captioner up` by tests/launcher, the wheel by test_wheel.py, the stack by
# test_compose.py, another model by tests/publish and tests/export, settings by tests/serving.
ELSEWHERE = (
    "make run", "python3 -m venv", "docker compose", ".venv/bin/captioner publish", ".venv/bin/captioner check",
    "CAPTIONER_PRECISION",
)  # fmt: skip
PATH = re.compile(r"`((?:captioner|export|frontend|tests|docs|deploy|training|benchmarks|model_repository)/[\w./-]*)")


@pytest.fixture(scope="module")
def page(served: Served, serve_page: Serve) -> str:
    return serve_page(served.grpc)


def here(text: str, served: Served, page: str = "") -> str:
    """The same text with this test's server and interpreter."""
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
    assert {language for _, language, _ in BLOCKS} == {"sh", "python", "text"}
    assert len(COMMANDS) >= 12 and len(PROGRAMS) == 8


@pytest.mark.triton
@pytest.mark.parametrize("command", [each for each in COMMANDS if not str(each.values[0]).startswith(ELSEWHERE)])
def test_a_command_runs(served: Served, page: str, tmp_path: Path, command: str) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", here(command, served, page)], tmp_path).strip()
    assert said or (tmp_path / "captions.jsonl").read_text().count('"caption": "ohwx, ') == 4


@pytest.mark.triton
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(served: Served, page: str, tmp_path: Path, program: str) -> None:
    assert run([sys.executable, "-c", here(program, served, page)], tmp_path).strip()


@pytest.mark.triton
def test_the_caption_in_the_readme_is_the_caption_that_the_command_prints(served: Served, tmp_path: Path) -> None:
    shown = next(text for _, language, text in BLOCKS if language == "text").strip()
    command = next(text for _, language, text in BLOCKS if language == "sh" and "captioner caption" in text)
    assert run(["bash", "-c", here(command, served)], tmp_path).strip() == shown


def test_the_readme_is_short_and_its_tree_is_the_tree() -> None:
    assert len(README.read_text().splitlines()) <= 160
    tree = [text for name, language, text in BLOCKS if name == README.name and language == "text"][-1]
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
    assert folders - shown <= {"build", "captioner.egg-info", "dist", "exports"}
    rooms = {path.name for path in (ROOT / "captioner").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert rooms <= {line.split("/")[0].strip() for line in tree.splitlines()}


@pytest.mark.parametrize("page", [README, *GUIDES, *FOR_DEVELOPERS], ids=lambda path: path.name)
def test_links_and_file_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]*)", text) if link and "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in PATH.findall(text) if "NAME" not in path and not (ROOT / path).exists()] == []
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target if target else page).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.name)
def test_a_guide_opens_with_whom_it_is_for(page: Path) -> None:
    assert page.read_text().split("\n\n")[1].startswith("For people who")
