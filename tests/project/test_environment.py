"""The environment script prints one sentence for anything that is missing, and does nothing the second time."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from scripts import environment

SCRIPT = environment.ROOT / "scripts" / "environment.py"


def test_an_old_python_can_parse_the_script() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_an_unsupported_python_gets_one_sentence(version: str, tmp_path: Path) -> None:
    as_if = f"import sys, runpy; sys.version_info = ({version.replace('.', ', ')}, 0); sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", as_if + "runpy.run_path(sys.argv[0], run_name='__main__')", str(SCRIPT)]
    done = subprocess.run([*command, f"--venv={tmp_path / 'venv'}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"environment: .* is Python {version}; Captioner needs Python 3.10, 3.11 or 3.12; name one with: .*\n",
        done.stderr,
    )
    assert not (tmp_path / "venv").exists()


def test_without_venv_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(environment.Refused, match=r"has no venv module; .* apt install python3\.\d+-venv"):
        environment.check_python()


def test_without_libpython_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.check_libpython()
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(environment, "loadable", lambda _: False)
    with pytest.raises(environment.Refused, match=r"no shared library libpython3\.\d+\.so\.1\.0, .* apt install"):
        environment.check_libpython()


def test_only_an_installed_library_is_loadable() -> None:
    assert environment.loadable("libc.so.6")
    assert not environment.loadable("libabsent.so.1")


def test_on_a_platform_without_a_wheel_the_message_names_the_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.check_machine(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(environment.Refused, match=r"this is Linux aarch64 glibc; .* docker compose up"):
        environment.check_machine(tmp_path)


def test_a_full_disk_is_refused_before_anything_is_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(environment.Refused, match=rf"{tmp_path} has 1\.0 GiB free; \d GiB are needed"):
        environment.check_machine(tmp_path / "venv")


def test_a_second_call_does_nothing_unless_a_pin_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamp = tmp_path / "captioner-environment"
    stamp.write_text(environment.fingerprint())
    begin = time.monotonic()
    done = subprocess.run([sys.executable, SCRIPT, f"--venv={tmp_path}"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - begin < 2, "it takes 0.1 s on an idle machine"
    changed = tmp_path / "constraints.txt"
    changed.write_text(environment.constraints().read_text() + "one==2\n")
    monkeypatch.setattr(environment, "constraints", lambda: changed)
    assert environment.fingerprint() != stamp.read_text()


def test_a_failing_command_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["sh", "-c", "seq 9; echo no such package >&2; exit 3"]
    with pytest.raises(environment.Refused, match=rf"(?s)^installing failed:\n  6\n.*no such package\n.*: {log}$"):
        environment.run("installing", command, log, time.monotonic())


def test_a_long_command_prints_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "PROGRESS_SECONDS", 0.2)
    command = [
        "sh",
        "-c",
        "echo Collecting a; echo Collecting b; sleep 0.5; echo Installing collected packages: a, b; sleep 0.5",
    ]
    environment.run("installing", command, tmp_path / "log", time.monotonic())
    output = capsys.readouterr().out
    assert re.search(r"\[ +0\.\d s\] installing\n\[ +0\.\d s\]   2 packages found\n", output)
    assert output.endswith("unpacking 2 packages\n")


def test_an_environment_of_another_python_is_recreated(tmp_path: Path) -> None:
    assert environment.same_python(Path(sys.executable))
    assert not environment.same_python(tmp_path / "bin" / "python")
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.9.1\n")
    other.chmod(0o755)
    assert not environment.same_python(other)


def test_without_root_the_message_names_the_missing_system_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda command: None if command == "chromium" else "/usr/bin/" + command)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(environment.Refused, match=r"the tests need system packages; run: .*install chromium$"):
        environment.install_system_packages()


def test_every_dependency_is_pinned_to_an_exact_version() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())["project"]
    assert set(environment.EXTRAS.split(",")) <= set(project["optional-dependencies"])
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pins = {}
    for line in environment.constraints().read_text().splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([\w.-]+)==([\w.]+)(?: *;.*)?", line)
            assert pin, f"{line!r} is not an exact pin without host or local version"
            pins[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", want)[0]).lower() for want in wanted}
    names.discard("captioner")  # extras name each other
    assert names - pins.keys() == {"onnxruntime-gpu"}  # the user chooses the build for their CUDA version
    assert pins["torch"] == "2.13.0"


def test_the_modules_that_are_imported_once_exist() -> None:
    for module in environment.USED.split(", "):
        assert importlib.util.find_spec(module), f"{module} does not exist"
