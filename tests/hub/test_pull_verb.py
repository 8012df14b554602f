"""`captioner pull`, in this process and as a command that is killed, cut off from the network or run on a terminal."""

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
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.embedded import EMBEDDED
from captioner.hub.pull import SINGLE
from tests.support.hub_server import Hub
from tests.support.served import assert_soon

MODEL = "tiny/captioner"
# As where there is no torch, on a machine that fetches for others: the model's family is looked at by the export.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; from captioner.cli import main; sys.exit(main())",
]
COMMAND += ["pull"]


def line(hub: Hub, commit: str, files: dict[str, bytes]) -> str:
    """What a pull says at its end."""
    folder = hub.home / "hub" / "models--tiny--captioner" / "snapshots" / commit
    return f"{MODEL}@{commit}: {len(files)} files, {sum(map(len, files.values()))} bytes, in {folder}\n"


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@the commit"])
def test_a_pull_ends_in_one_line_of_what_it_is_and_where(
    hub: Hub, tiny_files: dict[str, bytes], revision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files, branch="v1.0")
    hub.commit(MODEL, tiny_files | {"README.md": b"another"})
    hub.move(MODEL, "main", commit)
    assert main(["pull", MODEL + revision.replace("the commit", commit)]) == 0
    assert capsys.readouterr().out == line(hub, commit, tiny_files)


def test_where_there_is_no_terminal_each_file_is_one_plain_line(
    hub: Hub, tiny_files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit(MODEL, tiny_files)
    main(["pull", MODEL])
    said = capsys.readouterr().err
    assert "\r" not in said
    assert sorted(line.split(",")[0] for line in said.splitlines()) == sorted(tiny_files)
    assert f"{SINGLE}, 0.3 MB\n" in said
    main(["pull", MODEL])
    assert capsys.readouterr().err == "", "what is here was brought again"


@pytest.mark.parametrize(
    ("model", "code"),
    [("no such name", "MODEL_MISSING"), ("tiny/none", "MODEL_MISSING"), ("tiny/pickled", "MODEL_UNSUPPORTED"),
     ("tiny/gated", "ACCESS_DENIED"), ("tiny/busy", "HUB_UNREACHABLE"), ("tiny/wrong", "ARTEFACT_BROKEN")],
)  # fmt: skip
def test_a_refusal_is_one_line_with_its_code(
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
    *plain, refusal = captured.err.splitlines()
    assert refusal.startswith(f"{code}: ")
    assert captured.out == "" and not any(": " in said for said in plain)


@pytest.mark.parametrize("model", [EMBEDDED, "a folder"])
def test_what_is_on_this_disk_already_is_told_so(
    hub: Hub, tmp_path: Path, tiny_files: dict[str, bytes], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == "a folder":
        model = str(tmp_path)
        (tmp_path / SINGLE).write_bytes(tiny_files[SINGLE])
    assert main(["pull", model]) == 0
    assert "on this disk already" in capsys.readouterr().err
    assert hub.asked == []


def test_a_killed_pull_goes_on_where_it_was(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    size = 24_000_000  # the client writes 10 MiB at a time
    files = tiny_files | {SINGLE: hashlib.shake_256(b"weights").digest(size)}
    commit = hub.commit(MODEL, files)
    hub.fault(SINGLE, "silent", at=22_000_000)
    with subprocess.Popen([*COMMAND, MODEL], env=hub.environment, stderr=subprocess.DEVNULL) as first:
        parts = hub.home / "hub" / "models--tiny--captioner" / "captioner" / "parts"
        assert_soon(lambda: any(part.stat().st_size >= 2 * 10 * 2**20 for part in parts.glob("*")), seconds=60)
        first.kill()
    second = subprocess.run([*COMMAND, MODEL], env=hub.environment, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout) == (0, line(hub, commit, files)), second.stderr
    assert f"{SINGLE}, 24.0 MB, from 21.0 MB on\n" in second.stderr
    assert hub.bodies(SINGLE)[-1].range == f"bytes={2 * 10 * 2**20}-"
    assert hub.sent(SINGLE) < 1.2 * size


@pytest.mark.parametrize("cut", ["HF_HUB_OFFLINE", "unreachable"])
def test_a_model_that_was_pulled_is_there_without_a_network(
    hub: Hub, tiny_files: dict[str, bytes], tmp_path: Path, cut: str
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    assert main(["pull", MODEL]) == 0
    (hub.home / "hub").rename(tmp_path / "elsewhere")
    environment = hub.environment | {"HF_HUB_CACHE": str(tmp_path / "elsewhere")}
    hub.stop()
    if cut == "HF_HUB_OFFLINE":
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run([*COMMAND, MODEL], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, f"{MODEL}@{commit}:"), done.stderr
    assert (cut in done.stderr or hub.address in done.stderr) and f"{MODEL} at main is {commit}" in done.stderr


def test_on_a_terminal_a_bar_shows_how_far_it_is(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, tiny_files)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen([*COMMAND, MODEL], env=hub.environment, stdout=subprocess.DEVNULL, stderr=theirs) as pull:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while piece := os.read(ours, 65536):
                shown += piece
        assert pull.wait(60) == 0
    os.close(ours)
    assert b"\rmodel.safetensors: 100%|" in shown
    assert b"model.safetensors," not in shown, "the plain line stands beside the bar"
