"""A branch of a Hub followed into a repository, and from there to a caption with the network cut."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from benchmarks.published import empty_repository
from captioner import cli, wire
from captioner.artifacts.version_store import VersionStore
from captioner.client import Client
from captioner.launcher.supervisor import TritonServer
from captioner.publish.follow import LONGEST_WAIT_S, Follower
from captioner.publish.model_control import ModelControl, admin_key
from captioner.publish.rollback import rollback
from captioner.publish.webhook import SECRET_HEADER, listening
from tests.support.hub_server import Hub
from tests.support.served import assert_soon

MODEL = "org/tiny"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> VersionStore:
    return VersionStore(empty_repository(tmp_path / "model_repository"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def follower(repository: VersionStore, said: list[str]) -> Follower:
    return Follower(MODEL, "main", repository, ["--no-server", "--repository", str(repository.path)], said.append)


def changed(files: Mapping[str, bytes], text: str) -> dict[str, bytes]:
    """Another commit of the same model."""
    return {**files, "README.md": f"---\nlicense: mit\nbase_model: org/base\n---\n## Uses\n{text}\n".encode()}


def newest(repository: VersionStore) -> tuple[int, str, str]:
    """Number, revision and intended use of the version that a start would serve."""
    manifest = repository.versions()[repository.live()]
    return repository.live(), manifest.revision, manifest.card.intended_use


@pytest.mark.slow
def test_each_new_commit_is_published_once_and_one_rolled_back_waits_for_a_newer(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, repository: VersionStore, said: list[str]
) -> None:
    first = hub.commit(MODEL, changed(tiny_files, "First."))
    assert follower.step()
    assert newest(repository) == (1, first, "First.")
    assert follower.step()
    assert newest(repository)[0] == 1
    assert said[-1] == f"{MODEL}@{first[:12]} is live; waiting for a newer commit on main"
    second = hub.commit(MODEL, changed(tiny_files, "Second."))
    assert follower.step()
    assert newest(repository) == (2, second, "Second.")
    rollback(repository, (), lambda _: None)
    assert follower.step()
    assert newest(repository) == (1, first, "First."), "the one that was taken back must not come again"
    assert "was rolled back as version 2" in said[-1]
    third = hub.commit(MODEL, changed(tiny_files, "Third."))
    assert follower.step()
    assert newest(repository) == (3, third, "Third.")


def test_a_hub_that_is_down_is_said_once_and_asked_again(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, said: list[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    hub.stop()
    assert [follower.step(), follower.step()] == [False, False]
    assert len(said) == 1 and said[0].startswith("HUB_UNREACHABLE: ")
    hub.start()
    assert follower.look().commit == commit
    assert follower.look().why_not == ""


@pytest.mark.slow
def test_a_commit_that_cannot_be_exported_is_tried_once_and_a_newer_one_anew(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, repository: VersionStore, said: list[str]
) -> None:
    config = json.loads(tiny_files["config.json"]) | {"model_type": "no-such"}
    hub.commit(MODEL, {**tiny_files, "config.json": json.dumps(config).encode()})
    assert follower.step()
    assert said[-1].startswith("MODEL_UNSUPPORTED: ")
    asked = len(hub.asked)
    assert follower.step()
    assert len(hub.asked) - asked <= 1, "one small request, and no download"
    assert repository.versions() == {}
    hub.commit(MODEL, changed(tiny_files, "Mended."))
    assert follower.look().why_not == ""


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    hub: Hub, tiny_files: dict[str, bytes], repository: VersionStore, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    assert cli.main(["follow", MODEL, "--dry-run", "--repository", str(repository.path)]) == 0
    assert capsys.readouterr().out == f"would pull, export and publish {MODEL}@{commit}\n"
    assert repository.versions() == {}
    assert not hub.bodies(".safetensors")


class Wake(threading.Event):
    """Notes how long it was waited for, and ends the follower after a while."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._most = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        if len(self.waits) == self._most:
            raise KeyboardInterrupt
        return False


def test_failures_are_followed_by_longer_waits_up_to_an_hour_and_a_success_by_the_usual_one(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter([True, *[False] * 12, True])
    monkeypatch.setattr(follower, "step", lambda: next(outcomes))
    wake = Wake(14)
    with pytest.raises(KeyboardInterrupt):
        follower.run(10, wake)
    expected = [10.0, *[min(10 * 2**n, LONGEST_WAIT_S) for n in range(1, 13)], 10.0]
    for waited, usual in zip(wake.waits, expected, strict=True):
        assert 0.9 * usual <= waited <= 1.1 * usual


def test_the_webhook_wakes_the_follower_and_only_who_knows_the_secret(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def step() -> bool:
        steps.append(time.monotonic())
        return True

    monkeypatch.setattr(follower, "step", step)
    wake = threading.Event()
    threading.Thread(target=follower.run, args=(3600, wake), daemon=True).start()

    def post(port: int, secret: str) -> int:
        event = json.dumps({"event": {"action": "update"}, "repo": {"name": MODEL}}).encode()
        with urlopen(Request(f"http://127.0.0.1:{port}/", event, {SECRET_HEADER: secret}), timeout=5) as answer:
            return int(answer.status)

    with listening("127.0.0.1", 0, "sesame", wake) as port:
        assert_soon(lambda: len(steps) == 1)
        for wrong in ("", "sesam", "sésame"):
            with pytest.raises(HTTPError, match="401"):
                post(port, wrong)
        time.sleep(0.2)
        assert len(steps) == 1
        assert post(port, "sesame") == 204
        assert_soon(lambda: len(steps) == 2)


@pytest.mark.parametrize("every", ["0", "-5", "nan"])
def test_a_wait_that_is_none_is_refused(
    repository: VersionStore, every: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["follow", MODEL, f"--every={every}", "--repository", str(repository.path)]) == 2
    assert f"every is {every} s; it must be at least 1" in capsys.readouterr().err


def test_a_webhook_without_a_secret_is_refused(
    repository: VersionStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CAPTIONER_WEBHOOK_SECRET", raising=False)
    assert cli.main(["follow", MODEL, "--webhook-port", "0", "--repository", str(repository.path)]) == 2
    assert "needs the secret in CAPTIONER_WEBHOOK_SECRET" in capsys.readouterr().err


@pytest.mark.triton
@pytest.mark.slow
def test_a_new_commit_reaches_a_running_server_and_all_works_on_with_the_network_cut(
    hub: Hub, tiny_files: dict[str, bytes], repository: VersionStore, tmp_path: Path
) -> None:
    def captioner(*words: str) -> str:
        command = [sys.executable, "-m", "captioner.cli", *words]
        return str(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    photo = str(ROOT / "captioner" / "examples" / "cat.jpg")
    place = ["--repository", str(repository.path)]
    first = hub.commit(MODEL, changed(tiny_files, "First."))
    captioner("pull", MODEL)
    hub.stop()
    # From here on to the first caption there is no Hub.
    assert first in captioner("pull", MODEL)
    captioner("publish", MODEL, *place, "--no-server")
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "admin_key": admin_key(repository.path)}
    with TritonServer(repository.path, log_path=tmp_path / "server.log", **free) as server:  # type: ignore[arg-type]
        there = ["--server", server.grpc_address]
        assert captioner("caption", photo, *there).strip()
        with Client(server.grpc_address) as client:
            card = client.describe()
            assert (card.model, card.revision, card.license, card.base_model) == (MODEL, first, "mit", "org/base")
            hub.start()
            second = hub.commit(MODEL, changed(tiny_files, "Second."))
            captioner("follow", MODEL, "--once", *place, *there)
            assert client.caption(photo).details.revision == second
            assert client.describe().intended_use == "Second."
            captioner("rollback", *place, *there)
            assert client.caption(photo).details.revision == first
        assert ModelControl(server.grpc_address, admin_key(repository.path)).loaded(wire.CAPTIONER) == {1}
