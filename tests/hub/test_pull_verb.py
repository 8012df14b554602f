"""`captioner pull`: in this process, and as a command that is killed, offline, or on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.embedded import EMBEDDED
from captioner.hub.pull import SINGLE
from tests.support.hub_server import Hub
from tests.support.served import assert_soon

MODEL = "tiny/captioner"
# Without torch, as on a machine that only downloads.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; from captioner.cli import main; sys.exit(main())",
]
COMMAND += ["pull"]


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, MODEL]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def summary(hub: Hub, commit: str, files: dict[str, bytes]) -> str:
    """Return the line that a pull prints at its end."""
    folder = hub.home / "hub" / "models--tiny--captioner" / "snapshots" / commit
    return f"{MODEL}@{commit}: {len(files)} files, {sum(map(len, files.values()))} bytes, in {folder}\n"


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@the commit"])
def test_a_pull_prints_the_model_its_commit_size_and_folder(
    hub: Hub, tiny_files: dict[str, bytes], revision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files, branch="v1.0")
    hub.commit(MODEL, tiny_files | {"README.md": b"another"})
    hub.move(MODEL, "main", commit)
    assert main(["pull", MODEL + revision.replace("the commit", commit)]) == 0
    assert capsys.readouterr().out == summary(hub, commit, tiny_files)


def test_without_a_terminal_each_file_is_logged_as_one_line(
    hub: Hub, tiny_files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit(MODEL, tiny_files)
    main(["pull", MODEL])
    log = capsys.readouterr().err
    assert "\r" not in log
    assert sorted(line.split(",")[0] for line in log.splitlines()) == sorted(tiny_files)
    assert f"{SINGLE}, 0.3 MB\n" in log
    main(["pull", MODEL])
    assert capsys.readouterr().err == "", "cached files were downloaded again"


@pytest.mark.parametrize(
    ("model", "code"),
    [("no such name", "MODEL_MISSING"), ("tiny/none", "MODEL_MISSING"), ("tiny/pickled", "MODEL_UNSUPPORTED"),
     ("tiny/gated", "ACCESS_DENIED"), ("tiny/busy", "HUB_UNREACHABLE"), ("tiny/wrong", "ARTEFACT_BROKEN")],
)  # fmt: skip
def test_an_error_is_one_line_with_its_code(
    hub: Hub, tiny_files: dict[str, bytes], model: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gated", "busy", "wrong"):
        hub.commit(f"tiny/{name}", tiny_files)
    hub.commit("tiny/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.close_to("tiny/gated", "gated", "hf_right")
    hub.fault("tiny/busy/revision/main", 503, times=99)
    hub.fault("config.json", "wrong")
    assert main(["pull", model]) == 2
    captured = capsys.readouterr()
    *steps, error = captured.err.splitlines()
    assert error.startswith(f"{code}: ")
    assert captured.out == "" and not any(": " in step for step in steps)


@pytest.mark.parametrize("model", [EMBEDDED, "a folder"])
def test_a_local_model_is_not_pulled(
    hub: Hub, tmp_path: Path, tiny_files: dict[str, bytes], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == "a folder":
        model = str(tmp_path)
        (tmp_path / SINGLE).write_bytes(tiny_files[SINGLE])
    assert main(["pull", model]) == 0
    assert "already on this disk" in capsys.readouterr().err
    assert hub.asked == []


def test_a_killed_pull_is_resumed(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    size = 24_000_000  # the client writes 10 MiB at a time
    files = tiny_files | {SINGLE: hashlib.shake_256(b"weights").digest(size)}
    commit = hub.commit(MODEL, files)
    hub.fault(SINGLE, "silent", at=22_000_000)
    with subprocess.Popen([*COMMAND, MODEL], env=hub.environment, stderr=subprocess.DEVNULL) as first:
        parts = hub.home / "hub" / "models--tiny--captioner" / "captioner" / "parts"
        try:
            assert_soon(lambda: any(part.stat().st_size >= 2 * 10 * 2**20 for part in parts.glob("*")), seconds=60)
        finally:
            first.kill()
    second = run(hub.environment)
    assert (second.returncode, second.stdout) == (0, summary(hub, commit, files)), second.stderr
    assert f"{SINGLE}, 24.0 MB, resumed at 21.0 MB\n" in second.stderr
    assert hub.bodies(SINGLE)[-1].range == f"bytes={2 * 10 * 2**20}-"
    assert hub.sent(SINGLE) < 1.2 * size


@pytest.mark.parametrize("cut", ["HF_HUB_OFFLINE", "unreachable"])
def test_a_pulled_model_is_found_without_a_network(
    hub: Hub, tiny_files: dict[str, bytes], tmp_path: Path, cut: str
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    assert main(["pull", MODEL]) == 0
    (hub.home / "hub").rename(tmp_path / "elsewhere")
    environment = hub.environment | {"HF_HUB_CACHE": str(tmp_path / "elsewhere")}
    hub.stop()
    if cut == "HF_HUB_OFFLINE":
        environment["HF_HUB_OFFLINE"] = "1"
    done = run(environment)
    assert (done.returncode, done.stdout.split()[0]) == (0, f"{MODEL}@{commit}:"), done.stderr
    assert (cut in done.stderr or hub.address in done.stderr) and f"{MODEL} at main is {commit}" in done.stderr


def test_on_a_terminal_a_bar_shows_the_progress(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, tiny_files)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen([*COMMAND, MODEL], env=hub.environment, stdout=subprocess.DEVNULL, stderr=theirs) as pull:
        os.close(theirs)
        limit = threading.Timer(60, pull.kill)
        limit.start()
        shown = b""
        with contextlib.suppress(OSError):  # how Linux reports a closed terminal
            while piece := os.read(ours, 65536):
                shown += piece
        limit.cancel()
        assert pull.wait(60) == 0
    os.close(ours)
    assert b"\rmodel.safetensors: 100%|" in shown
    assert b"model.safetensors," not in shown, "the bar replaces the line"
