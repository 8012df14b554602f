"""`captioner doctor`: what it finds, what it calls a problem, and what it never shows."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from captioner import __version__, doctor
from captioner.artifacts.manifest import sha256
from captioner.cli import main
from tests.artifacts.test_manifest import MANIFEST
from tests.launcher.test_up import free_ports
from tests.support.served import Served

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:9"


@pytest.fixture
def model_repository(tmp_path: Path) -> Path:
    """Two published versions, of one file each."""
    repository = tmp_path / "model_repository"
    for version in ("1", "2"):
        folder = repository / "captioner" / version
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(version.encode())
        files = {"captioner/weights": sha256(folder / "weights")}
        replace(MANIFEST, revision=version * 40, files=files).save(folder)
    (repository / "captioner" / "config.pbtxt").write_text("")
    return repository


@pytest.fixture(autouse=True)
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free ones in place of 8000 to 8002 and 7860, which may be taken where the tests run."""
    found = dict(zip(doctor.PORTS, free_ports(4), strict=True))
    monkeypatch.setattr(doctor, "PORTS", found)
    return found


def reported(capsys: pytest.CaptureFixture[str], repository: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", "--repository", str(repository), "--server", NOBODY, *words])
    return code, json.loads(capsys.readouterr().out)


def blocking(report: dict[str, Any]) -> list[str]:
    return [problem["sentence"] for problem in report["problems"] if problem["blocks"]]


def test_a_machine_that_works_is_described_and_nothing_blocks(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = reported(capsys, model_repository)
    facts = report["facts"]
    assert code == 0 and blocking(report) == []
    assert not any("error" in section for section in facts.values())
    assert facts["captioner"]["version"] == __version__
    assert facts["system"]["kernel"] == os.uname().release and sys.executable in facts["system"]["python"]
    assert facts["processor"]["cores"] == os.cpu_count() and facts["processor"]["model"]
    assert 0 < facts["memory"]["available GiB"] <= facts["memory"]["total GiB"]
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert facts["devices"]["torch threads"] >= 1
    assert "CPUExecutionProvider" in facts["devices"]["onnxruntime providers"]
    assert Path(facts["tritonserver"]["server"], "bin", "tritonserver").is_file()
    assert set(facts["ports"].values()) == {"free"}
    assert facts["model repository"]["version 2"] == "a/b@222222222222, files verified"
    assert facts[f"server at {NOBODY}"]["answer"].startswith("SERVER_UNREACHABLE: ")


def test_the_text_says_what_the_json_says(model_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model_repository / "captioner" / "1" / "weights").write_bytes(b"other")
    _, report = reported(capsys, model_repository)
    main(["doctor", "--repository", str(model_repository), "--server", NOBODY])
    text = capsys.readouterr().out
    assert all(section in text.splitlines() for section in report["facts"])
    assert all(f"! {problem['sentence']}" in text for problem in report["problems"])
    assert f"  version: {__version__}" in text and "files verified" in text


def test_the_commit_is_the_checkouts(model_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    _, report = reported(capsys, model_repository)
    assert report["facts"]["captioner"]["commit"] == head.stdout.strip()


def test_a_taken_port_blocks_and_its_option_is_named(
    model_repository: Path, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", ports["metrics"])):
        code, report = reported(capsys, model_repository)
    assert code == 1
    assert blocking(report) == [f"port {ports['metrics']} (metrics) is taken; choose another with --metrics-port"]
    assert report["facts"]["ports"][f"{ports['metrics']} (metrics)"] == "taken"


@pytest.mark.parametrize(("version", "expected"), [("1", 0), ("2", 1)])
def test_an_altered_file_is_named_and_blocks_in_the_version_that_is_served(
    version: str, expected: int, model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = model_repository / "captioner" / version / "weights"
    altered.write_bytes(b"other")
    code, report = reported(capsys, model_repository)
    assert code == expected
    (sentence,) = (each["sentence"] for each in report["problems"] if str(altered) in each["sentence"])
    assert sentence.startswith(f"version {version} is broken") and "export again" in sentence
    assert "broken" in report["facts"]["model repository"][f"version {version}"]


def test_a_folder_that_is_no_repository_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = reported(capsys, tmp_path / "nowhere")
    assert code == 1 and any("--repository" in sentence for sentence in blocking(report))


def test_a_repository_as_it_was_cloned_is_no_problem(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1", "2"):
        shutil.rmtree(model_repository / "captioner" / version)
    code, report = reported(capsys, model_repository)
    assert code == 0 and "publishes the embedded model" in report["facts"]["model repository"]["versions"]


def test_a_setting_that_would_be_refused_blocks(
    model_repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_SLOTS", "many")
    code, report = reported(capsys, model_repository)
    assert code == 1 and any("slots is 'many'" in sentence for sentence in blocking(report))


def test_no_secret_is_ever_shown(
    model_repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "HF_TOKEN": "hf_pssstpssstpssst",
        "HUGGINGFACE_HUB_TOKEN": "PSSST2",
        "HF_ENDPOINT": "https://me:PSSST3@mirror.example/hf_pssst4pssst",
        "https_proxy": "http://user:PSSST5@proxy.example:3128",
        "CAPTIONER_API_KEY": "PSSST6",
        "CAPTIONER_PRECISION": "hf_pssst7pssst",
        "AWS_SECRET_ACCESS_KEY": "PSSST8",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for words in (["--json"], []):
        main(["doctor", *words, "--repository", str(model_repository), "--server", NOBODY])
        shown = capsys.readouterr().out
        assert "pssst" not in shown.lower()
        assert "HF_TOKEN" in shown and "set, hidden" in shown and "proxy.example" in shown and "mirror.example" in shown


def test_models_in_the_hubs_cache_are_listed(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub" / "models--Salesforce--blip-image-captioning-base").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    _, report = reported(capsys, model_repository)
    assert report["facts"]["environment"]["models in it"] == ["Salesforce/blip-image-captioning-base"]


@contextlib.contextmanager
def base_packages(folder: Path) -> Iterator[Path]:
    """The packages that `pip install captioner` brings, and no other of this environment's."""
    lines = importlib.metadata.requires("captioner") or []
    waiting = [Requirement(line) for line in lines]
    names: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        key = (wanted.name.lower(), frozenset(extras))
        if key in names or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        names.add(key)
        needed = importlib.metadata.requires(wanted.name) or []
        for line in needed:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                requirement.marker = None
                waiting.append(requirement)
    site = Path(sysconfig.get_path("purelib"))
    for name, _ in names:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(site / top)
    yield folder


def test_with_the_base_dependencies_alone_it_says_what_to_install(tmp_path: Path, model_repository: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for ours in (importlib.metadata.distribution("captioner").read_text("top_level.txt") or "").split():
        (packages / ours).symlink_to(ROOT / ours)
    with base_packages(packages):
        assert not (packages / "torch").exists() and (packages / "grpc").exists()
        words = ["-m", "captioner.cli", "doctor", "--json", "--repository", str(model_repository), "--server", NOBODY]
        done = subprocess.run(
            [sys.executable, "-S", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
            timeout=60,
        )
    assert done.returncode == 1 and done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert not any("error" in section for section in report["facts"].values())
    assert report["facts"]["packages"]["torch"] is None and report["facts"]["packages"]["numpy"]
    (missing,) = (sentence for sentence in blocking(report) if sentence.startswith("torch, "))
    assert "onnxruntime missing; run: pip install 'captioner[server,embedded,frontend,export]'" in missing
    assert any("nvidia-pytriton" in sentence and "is not installed" in sentence for sentence in blocking(report))


@pytest.mark.triton
@pytest.mark.slow
def test_a_server_that_answers_shows_its_card_and_a_caption_and_its_ports_are_its_own(
    served: Served, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PORTS", {"gRPC": int(served.grpc.rpartition(":")[2])})
    code, report = reported(capsys, repository, "--server", served.grpc)
    answer = report["facts"][f"server at {served.grpc}"]
    assert code == 0 and list(report["facts"]["ports"].values()) == ["taken"]
    assert answer["card"]["model"] == "captioner-embedded" and answer["caption"] and 0 < answer["seconds"] < 10
    assert "files verified" in report["facts"]["model repository"]["version 1"]
