"""The built wheel: what it installs, and that the command works from it alone, far from any checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from captioner.launcher.ports import choose_ports
from captioner.wire import MODELS
from tests.support.base_packages import link_base_packages
from tests.support.served import Served

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "captioner" / "examples" / "cat.jpg"
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the committed files, so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for folder in ("captioner", "export", "frontend", "model_repository", "training"):
        ignore = shutil.ignore_patterns("__pycache__", ".*-*", ".staged", ".quarantine", ".lock")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, timeout=280)
    (built,) = out.glob("*.whl")
    return built


def environment(folder: Path, home: Path) -> dict[str, str]:
    """Variables for a command of the virtual environment in `folder`, with `home` as the user's home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPTIONER_", "XDG_"))}
    path = os.pathsep.join([str(folder / "bin"), kept.get("PATH", os.defpath)])
    return kept | {"HOME": str(home), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and links to its base dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    make(folder, wheel)
    link_base_packages(folder / SITE)
    return folder


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and this one's packages behind it in place of captioner[server]'s."""
    folder = tmp_path_factory.mktemp("whole") / "venv"
    make(folder, wheel)
    packages = importlib.metadata.distribution("torch").locate_file("")
    (folder / SITE / "packages.pth").write_text(f"{packages}\n")  # not a site folder: its own .pth files are not read
    return folder


def make(folder: Path, wheel: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=120)


def run(folder: Path, home: Path, *words: str, code: int = 0) -> str:
    """What a command prints; it runs in an empty folder."""
    command = [str(folder / "bin" / words[0]), *words[1:]]
    variables = environment(folder, home)
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_packages_their_data_and_no_training_code(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"captioner", "export", "frontend"}  # docs/architecture.md says why the last two are there
    for model in MODELS:
        assert f"captioner/model_repository/{model}/config.pbtxt" in names
    assert {name for name in names if name.startswith("captioner/model_repository/") and "/1/" in name} <= {
        f"captioner/model_repository/{model}/1/{file}" for model in MODELS for file in ("model.py", ".gitkeep")
    }
    committed = subprocess.run(["git", "ls-files", "captioner", "frontend"], cwd=ROOT, capture_output=True, text=True)
    data = [name for name in committed.stdout.split() if not name.endswith(".py")]
    assert [name for name in data if name not in names and (ROOT / name).exists()] == []


@pytest.mark.triton
def test_the_base_install_captions_and_tells_what_is_missing_for_a_server(
    served: Served, bare: Path, tmp_path: Path
) -> None:
    assert run(bare, tmp_path, "captioner", "caption", "--server", served.grpc, str(PHOTO)).strip()
    said = run(bare, tmp_path, "captioner", "doctor", "--server", served.grpc, code=1)
    assert "captioner[server]" in said and "torch" in said
    report = json.loads(run(bare, tmp_path, "captioner", "doctor", "--json", "--server", served.grpc, code=1))
    assert "caption" in report["facts"][f"server at {served.grpc}"]


@contextmanager
def up(folder: Path, home: Path, ports: dict[str, int]) -> Iterator[subprocess.Popen[str]]:
    options = [f"--{name.lower()}-port={port}" for name, port in ports.items()]
    process = subprocess.Popen(
        [str(folder / "bin" / "captioner"), "up", *options],
        cwd=home,
        env=environment(folder, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.exhaustive
def test_captioner_up_serves_from_an_empty_folder_and_publishes_into_the_users_data_folder(
    whole: Path, tmp_path: Path
) -> None:
    ports = choose_ports("127.0.0.1", {"HTTP": 0, "gRPC": 0, "metrics": 0, "page": 0})
    said: list[str] = []
    with up(whole, tmp_path, ports) as process:
        assert process.stdout is not None
        end = time.monotonic() + 240
        for line in process.stdout:
            said.append(line)
            if "ready:" in line or time.monotonic() > end:
                break
        assert re.search(r"ready: http://127\.0\.0\.1:\d+", said[-1]), "".join(said)
        address = f"127.0.0.1:{ports['gRPC']}"
        assert "cat" in run(whole, tmp_path, "captioner", "caption", "--server", address, str(PHOTO))
    repository = tmp_path / ".local" / "share" / "captioner" / "model_repository"
    assert (repository / "captioner" / "1" / "manifest.json").is_file()
    listed = run(whole, tmp_path, "captioner", "versions")
    assert "live" in listed and "captioner-embedded" in listed
    assert not (tmp_path / "model_repository").exists()


@pytest.mark.exhaustive
def test_pip_installs_the_wheel_with_its_own_dependencies(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=60)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True, timeout=280)
    assert run(folder, tmp_path, "captioner", "--version").startswith("captioner ")
    assert "verbs" in run(folder, tmp_path, "captioner", "--help")
