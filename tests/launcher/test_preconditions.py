"""`captioner up` refuses to start with one sentence, which `captioner doctor` reports too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.artifacts.manifest import NAME
from captioner.errors import StartupRefused
from captioner.launcher.preconditions import require

MOUNTS = {  # what makes each precondition fail: a command in a mount namespace of its own, and a part of the sentence
    "shared memory": ("mount -t tmpfs -o size=8m tmpfs /dev/shm", "MiB are free in /dev/shm"),
    "disk": ("mount -t tmpfs -o size=9m tmpfs {folder}", "MiB are free on the disk of {folder}"),
    "read-only": ("mount -t tmpfs -o ro,size=1g tmpfs {folder}", "{folder} is read-only and"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MOUNTS)
def test_up_refuses_with_the_sentence_of_doctor(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, part = (text.format(folder=folder) for text in MOUNTS[fault])
    command = f"{sys.executable} -m captioner.cli"
    repository = f"--repository {folder}/models"
    ports = "--http-port 0 --grpc-port 0 --metrics-port 0 --page-port 0"
    doctor = f"{command} doctor --json --server 127.0.0.1:9 {repository}"
    script = f"{mount} && {{ {doctor}; {command} up {ports} {repository}; }}"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if not done.stdout:
        pytest.skip(f"this machine allows no mount namespace: {done.stderr}")
    (found,) = (each["sentence"] for each in json.loads(done.stdout)["problems"] if part in each["sentence"])
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"STARTUP_REFUSED: {found}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("full", ["/dev/shm", "repository", "temporary files"])
def test_too_little_room_is_refused_with_the_number_the_limit_and_a_remedy(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, repository = tmp_path / "tmp", tmp_path / "repository"
    temporary.mkdir()
    repository.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    folder = {"/dev/shm": Path("/dev/shm"), "repository": repository, "temporary files": temporary}[full]

    def disk_usage(path: Path) -> object:
        return shutil._ntuple_diskusage(0, 0, (7 if path == folder else 5000) * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    remedy = {"/dev/shm": "--shm-size=1g", "repository": "--repository", "temporary files": "TMPDIR"}[full]
    limit = 32 if full == "/dev/shm" else 256
    with pytest.raises(StartupRefused, match=rf"only 7 MiB are free .*{folder}.* {limit} MiB; .*{remedy}$"):
        require(repository)


def test_a_read_only_repository_is_refused_only_while_nothing_is_published_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    for repository in (tmp_path, tmp_path / "new" / "models"):
        with pytest.raises(StartupRefused, match=f"^{tmp_path} is read-only and {repository} has no published model"):
            require(repository)
    (tmp_path / "captioner" / "1").mkdir(parents=True)
    (tmp_path / "captioner" / "1" / NAME).touch()
    require(tmp_path)


def test_a_missing_libpython_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("find_libpython.find_libpython", lambda: None)
    with pytest.raises(StartupRefused, match=r"has no shared libpython3\.\d+\.so.*apt install libpython3"):
        require(tmp_path)
