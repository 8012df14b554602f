"""`captioner doctor`: the facts it reports, the problems it names, and the secrets it hides."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from captioner import __version__, machine
from captioner.artifacts.manifest import sha256
from captioner.cli import main
from captioner.doctor import installation, serving
from captioner.doctor.report import Problem
from captioner.launcher.ports import choose_ports
from tests.artifacts.test_manifest import MANIFEST
from tests.support.base_packages import link_base_packages
from tests.support.served import Served

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:9"


@pytest.fixture
def model_repository(tmp_path: Path) -> Path:
    """A repository with two published versions of one file each."""
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
    """Replace the default ports, which may be in use where the tests run, by free ones."""
    free = choose_ports("127.0.0.1", dict.fromkeys(serving.PORTS, 0))
    monkeypatch.setattr(serving, "PORTS", free)
    return free


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
    assert f"torch {importlib.metadata.version('torch')}" in facts["packages"]["models"]
    assert facts["packages"].keys() >= {"base", "models", "embedded", "export", "frontend", "mcp", "ray"}
    assert facts["devices"]["torch threads"] >= 1
    assert "CPUExecutionProvider" in facts["devices"]["onnxruntime providers"]
    assert Path(facts["tritonserver"]["server"], "bin", "tritonserver").is_file()
    assert set(facts["ports"].values()) == {"free"}
    assert facts["model repository"]["version 2"] == "a/b@222222222222, files verified"
    assert facts[f"server at {NOBODY}"]["answer"].startswith("SERVER_UNREACHABLE: ")


def test_the_text_holds_the_sections_and_problems_of_the_json(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_repository / "captioner" / "1" / "weights").write_bytes(b"other")
    _, report = reported(capsys, model_repository)
    main(["doctor", "--repository", str(model_repository), "--server", NOBODY])
    text = capsys.readouterr().out
    assert all(section in text.splitlines() for section in report["facts"])
    assert all(f"! {problem['sentence']}" in text for problem in report["problems"])
    assert f"  version: {__version__}" in text and "files verified" in text


def test_the_commit_is_that_of_the_checkout(model_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    _, report = reported(capsys, model_repository)
    assert report["facts"]["captioner"]["commit"] == head.stdout.strip()


def test_a_port_in_use_blocks_and_its_option_is_named(
    model_repository: Path, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", ports["metrics"])):
        code, report = reported(capsys, model_repository)
    assert code == 1
    assert blocking(report) == [f"port {ports['metrics']} (metrics) is in use; choose another with --metrics-port"]
    assert report["facts"]["ports"][f"{ports['metrics']} (metrics)"] == "taken"


@pytest.mark.parametrize(("version", "expected"), [("1", 0), ("2", 1)])
def test_an_altered_file_is_named_and_blocks_only_in_the_live_version(
    version: str, expected: int, model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = model_repository / "captioner" / version / "weights"
    altered.write_bytes(b"other")
    code, report = reported(capsys, model_repository)
    assert code == expected
    (sentence,) = (each["sentence"] for each in report["problems"] if str(altered) in each["sentence"])
    assert sentence.startswith(f"version {version} is broken") and "export again" in sentence
    assert "broken" in report["facts"]["model repository"][f"version {version}"]


def test_a_folder_that_is_not_a_repository_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    code, report = reported(capsys, tmp_path)
    assert code == 1 and any("--repository" in sentence for sentence in blocking(report))


def test_a_repository_that_does_not_exist_yet_is_not_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = reported(capsys, tmp_path / "new")
    assert code == 0 and "creates the repository" in report["facts"]["model repository"]["versions"]


def test_a_repository_without_a_published_model_is_not_a_problem(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1", "2"):
        shutil.rmtree(model_repository / "captioner" / version)
    code, report = reported(capsys, model_repository)
    assert code == 0 and "publishes the embedded model" in report["facts"]["model repository"]["versions"]


def test_an_invalid_setting_blocks(
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


def test_the_models_in_the_hub_cache_are_listed(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub" / "models--Salesforce--blip-image-captioning-base").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    _, report = reported(capsys, model_repository)
    assert report["facts"]["environment"]["models in it"] == ["Salesforce/blip-image-captioning-base"]


def test_the_requirements_are_those_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {machine.BASE: project["dependencies"], **project["optional-dependencies"]}
    found = machine.requirements(installation.DISTRIBUTION)
    for requirement in (each for lines in found.values() for each in lines):
        requirement.marker = None
    assert {extra: set(map(str, lines)) for extra, lines in found.items()} == {
        extra: {str(Requirement(line)) for line in lines} for extra, lines in declared.items()
    }


METADATA = """Metadata-Version: 2.1
Name: pretend
Version: 1
Provides-Extra: server
Provides-Extra: models
Provides-Extra: embedded
Provides-Extra: ray
Provides-Extra: mcp
Requires-Dist: packaging>=1
Requires-Dist: pretend[models,embedded]; extra == "server"
Requires-Dist: packaging>=999; extra == "models"
Requires-Dist: packaging<1; python_version < "3" and extra == "models"
Requires-Dist: absent-package; extra == "embedded"
Requires-Dist: packaging<1; extra == "ray"
Requires-Dist: absent-package>=2; extra == "mcp"
"""


def test_missing_and_unsuitable_packages_are_named_with_the_command_and_only_those_of_up_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pretend-1.dist-info").mkdir()
    (tmp_path / "pretend-1.dist-info" / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installation, "DISTRIBUTION", "pretend")
    problems: list[Problem] = []
    facts = installation.packages(problems)
    installed = f"packaging {importlib.metadata.version('packaging')}"
    assert facts == {
        "base": installed,
        "models": f"{installed} (must be >=999); run: pip install 'pretend[models]'",
        "embedded": "absent-package missing; run: pip install 'pretend[embedded]'",
        "ray": f"{installed} (must be <1); run: pip install 'pretend[ray]'",
        "mcp": "absent-package missing; run: pip install 'pretend[mcp]'",
    }
    assert problems == [
        Problem(f"ray: {facts['ray']}", blocks=False),
        Problem(
            f"{installed} (must be >=999), absent-package missing; run: pip install 'pretend[server]'", blocks=True
        ),
    ]
    assert [str(package) for package in machine.packages([Requirement("pretend[mcp]")])] == [
        "pretend 1",
        "absent-package missing",
    ]


def test_with_the_base_dependencies_alone_it_says_what_to_install(tmp_path: Path, model_repository: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    metadata = Path(str(importlib.metadata.distribution("captioner")._path))  # type: ignore[attr-defined]
    for path in (ROOT / "captioner", ROOT / "export", ROOT / "frontend", metadata.resolve()):
        (packages / path.name).symlink_to(path)
    link_base_packages(packages)
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
    shown = report["facts"]["packages"]
    assert "numpy 1." in shown["base"] and "missing" not in shown["base"]
    for extra in ("models", "embedded", "export", "frontend", "ray"):
        assert "missing" in shown[extra] and f"pip install 'captioner[{extra}]'" in shown[extra]
    (missing,) = (sentence for sentence in blocking(report) if "torch missing" in sentence)
    assert "onnxruntime missing" in missing and missing.endswith("; run: pip install 'captioner[server]'")
    assert any("nvidia-pytriton" in sentence and "is not installed" in sentence for sentence in blocking(report))


@pytest.mark.triton
@pytest.mark.slow
def test_a_running_server_is_described_and_its_ports_are_not_a_problem(
    served: Served, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PORTS", {"gRPC": int(served.grpc.rpartition(":")[2])})
    code, report = reported(capsys, repository, "--server", served.grpc)
    answer = report["facts"][f"server at {served.grpc}"]
    assert code == 0 and list(report["facts"]["ports"].values()) == ["taken"]
    assert answer["card"]["model"] == "captioner-embedded" and answer["caption"] and 0 < answer["seconds"] < 10
    assert "files verified" in report["facts"]["model repository"]["version 1"]
