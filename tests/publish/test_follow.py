"""Following a branch on the Hub into a repository and a running server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from benchmarks.published import empty_repository
from captioner import cli
from captioner.artifacts.version_store import VersionStore
from captioner.client import Client
from captioner.examples import PHOTOS
from captioner.publish.follow import MAX_WAIT_S, Follower
from captioner.publish.rollback import rollback
from captioner.publish.webhook import SECRET_HEADER, listening
from captioner.wire import CAPTIONER
from tests.support.hub_server import Hub
from tests.support.publishing import MODEL, Stand, quiet, with_use
from tests.support.served import assert_soon


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(empty_repository(tmp_path / "model_repository"))


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def follower(store: VersionStore, log: list[str]) -> Follower:
    return Follower(MODEL, "main", store, ["--no-server", "--repository", str(store.path)], log.append)


def newest(store: VersionStore) -> tuple[int, str, str]:
    """Return number, revision and intended use of the version that a start would serve."""
    manifest = store.versions()[store.live()]
    return store.live(), manifest.revision, manifest.card.intended_use


@pytest.mark.triton
@pytest.mark.slow
def test_a_model_pulled_before_is_published_and_served_with_the_network_cut(hub: Hub, stand: Stand) -> None:
    hub.stop()
    with Client(stand.address) as client:
        card = client.describe()
        assert client.caption(PHOTOS[0]).text
    assert (card.model, card.license, card.base_model, card.intended_use) == (MODEL, "mit", "org/base", "First.")


@pytest.mark.triton
@pytest.mark.slow
def test_a_new_commit_reaches_a_running_server_and_once_rolled_back_does_not_come_again(
    hub: Hub, tiny_files: dict[str, bytes], stand: Stand, log: list[str]
) -> None:
    first = hub.commit(MODEL, with_use(tiny_files, "First."))
    options = ["--repository", str(stand.store.path), "--server", stand.address]
    follower = Follower(MODEL, "main", stand.store, options, log.append)
    assert stand.live() == ("1", first)
    assert follower.step()
    assert log == [f"{MODEL}@{first[:12]} is live; waiting for a newer commit on main"]
    second = hub.commit(MODEL, with_use(tiny_files, "Second."))
    command = [sys.executable, "-m", "captioner.cli", "follow", MODEL, "--once", *options]
    subprocess.run(command, check=True, timeout=240)
    with Client(stand.address) as client:
        assert client.caption(PHOTOS[0]).details.revision == second
        assert client.describe().intended_use == "Second."
    assert cli.main(["rollback", *options]) == 0
    assert stand.live() == ("1", first)
    assert follower.step()
    assert "was rolled back as version" in log[-1]
    assert stand.live() == ("1", first)
    assert stand.controls[0].loaded(CAPTIONER) == {1}
    hub.commit(MODEL, with_use(tiny_files, "Third."))
    assert follower.poll().skip_reason == ""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_new_commit_is_published_once(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, store: VersionStore, log: list[str]
) -> None:
    first = hub.commit(MODEL, with_use(tiny_files, "First."))
    assert follower.step()
    assert newest(store) == (1, first, "First.")
    assert follower.step()
    assert newest(store)[0] == 1
    second = hub.commit(MODEL, with_use(tiny_files, "Second."))
    assert follower.step()
    assert newest(store) == (2, second, "Second.")
    rollback(store, (), quiet)
    assert follower.step()
    assert newest(store) == (1, first, "First."), "a version that was rolled back must not come again"
    assert "was rolled back as version 2" in log[-1]
    third = hub.commit(MODEL, with_use(tiny_files, "Third."))
    assert follower.step()
    assert newest(store) == (3, third, "Third.")


def test_an_unreachable_hub_is_logged_once_and_polled_again(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, log: list[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    hub.stop()
    assert [follower.step(), follower.step()] == [False, False]
    assert len(log) == 1 and log[0].startswith("HUB_UNREACHABLE: ")
    hub.start()
    assert follower.poll().commit == commit
    assert follower.poll().skip_reason == ""


@pytest.mark.slow
def test_a_commit_that_cannot_be_exported_is_skipped_until_a_newer_one(
    hub: Hub, tiny_files: dict[str, bytes], follower: Follower, store: VersionStore, log: list[str]
) -> None:
    config = json.loads(tiny_files["config.json"]) | {"model_type": "no-such"}
    hub.commit(MODEL, {**tiny_files, "config.json": json.dumps(config).encode()})
    assert follower.step()
    assert log[-1].startswith("MODEL_UNSUPPORTED: ")
    asked = len(hub.asked)
    assert follower.step()
    assert len(hub.asked) - asked <= 1, "one small request, and no download"
    assert store.versions() == {}
    hub.commit(MODEL, with_use(tiny_files, "Repaired."))
    assert follower.poll().skip_reason == ""


def test_a_dry_run_logs_what_would_be_published_and_changes_nothing(
    hub: Hub, tiny_files: dict[str, bytes], store: VersionStore, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.commit(MODEL, tiny_files)
    assert cli.main(["follow", MODEL, "--dry-run", "--repository", str(store.path)]) == 0
    assert capsys.readouterr().out == f"would pull, export and publish {MODEL}@{commit}\n"
    assert store.versions() == {}
    assert not hub.bodies(".safetensors")


class Wake(threading.Event):
    """Records the waits, and ends the follower after some of them."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._count = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        if len(self.waits) == self._count:
            raise KeyboardInterrupt
        return False


def test_waits_grow_after_failures_up_to_an_hour_and_return_to_the_interval_after_a_success(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter([True, *[False] * 12, True])
    monkeypatch.setattr(follower, "step", lambda: next(outcomes))
    wake = Wake(14)
    with pytest.raises(KeyboardInterrupt):
        follower.run(10, wake)
    expected = [10.0, *[min(10 * 2**n, MAX_WAIT_S) for n in range(1, 13)], 10.0]
    for waited, usual in zip(wake.waits, expected, strict=True):
        assert 0.9 * usual <= waited <= 1.1 * usual


def test_the_webhook_wakes_the_follower_only_with_its_secret(
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
        time.sleep(0.1)
        assert len(steps) == 1
        assert post(port, "sesame") == 204
        assert_soon(lambda: len(steps) == 2)


@pytest.mark.parametrize("every", ["0", "-5", "nan"])
def test_an_interval_below_a_second_is_refused(
    store: VersionStore, every: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["follow", MODEL, f"--every={every}", "--repository", str(store.path)]) == 2
    assert f"every is {every} s; it must be at least 1" in capsys.readouterr().err


def test_a_webhook_without_a_secret_is_refused(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CAPTIONER_WEBHOOK_SECRET", raising=False)
    assert cli.main(["follow", MODEL, "--webhook-port", "0", "--repository", str(store.path)]) == 2
    assert "needs the secret in CAPTIONER_WEBHOOK_SECRET" in capsys.readouterr().err
