"""Publishing into running servers: traffic moves to a verified version, no request fails, a rollback is immediate."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from captioner import cli
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.errors import CaptionerError
from captioner.examples import PHOTOS
from captioner.publish.model_control import ModelControl
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.wire import CAPTIONER
from tests.support.publishing import Load, Stand, damaged, quiet, revision
from tests.support.served import assert_soon

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

EXHAUSTIVE = pytest.mark.exhaustive


@dataclass
class RoundTrips:
    """The record of publishes and rollbacks under load. The last rollback is by the verb, in a process of its own."""

    loads: list[Load]  # one for each server
    published: list[str] = field(default_factory=list)
    live: list[set[tuple[str, str]]] = field(default_factory=list)  # version and revision on all servers, each step
    rollback_s: list[float] = field(default_factory=list)  # from the call until traffic has moved
    verb_s: float = 0  # from the start of the process until it logs that traffic has moved
    verb_line: str = ""
    verb_code: int | None = None


TWO_SERVERS, TEN_TIMES = (1, 2, 2, 0.1), pytest.param((10, 1, 3, 0), marks=EXHAUSTIVE)


@pytest.fixture(scope="module", params=[TWO_SERVERS, TEN_TIMES], ids=["two servers", "ten times"])
def round_trips(shared_stand: Stand, replica: int, exports: list[Path], request: pytest.FixtureRequest) -> RoundTrips:
    count, servers, clients, pause_s = request.param  # clients of each server, seconds between their requests
    shared_stand.reset()
    controls = shared_stand.controls[:servers]
    record = RoundTrips([shared_stand.load(number, clients=clients, pause_s=pause_s) for number in range(servers)])
    with contextlib.ExitStack() as stack:
        for load in record.loads:
            stack.enter_context(load)
        for number in range(count):
            record.published.append(str(publish(exports[1], shared_stand.store, controls, quiet)))
            record.live.append({shared_stand.live(server) for server in range(servers)})
            if number < count - 1:
                record.rollback_s.append(timed_rollback(shared_stand.store, controls))
            else:
                rollback_by_verb(shared_stand.store, controls, record)
            record.live.append({shared_stand.live(server) for server in range(servers)})
    return record


def timed_rollback(store: VersionStore, controls: list[ModelControl]) -> float:
    """Roll back; return the seconds until traffic has moved, which is when it is logged."""
    began, moved = time.monotonic(), list[float]()
    rollback(store, controls, lambda _: moved.append(time.monotonic()))
    return moved[-1] - began


def rollback_by_verb(store: VersionStore, controls: list[ModelControl], record: RoundTrips) -> None:
    command = [sys.executable, "-m", "captioner.cli", "rollback", "--repository", str(store.path)]
    command += [f"--server={control.address}" for control in controls]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        assert process.stdout is not None
        record.verb_line = process.stdout.readline()
        record.verb_s = time.monotonic() - began
        record.verb_code = process.wait()
        limit.cancel()


def test_publishes_and_rollbacks_under_load_fail_no_request_and_mix_up_no_captions(
    round_trips: RoundTrips, exports: list[Path]
) -> None:
    one, other = map(revision, exports)
    steps = [step for version in round_trips.published for step in ({(version, other)}, {("1", one)})]
    assert round_trips.live == steps, "all servers move together"
    for load in round_trips.loads:
        assert load.faults == []
        assert set(load.by_version) == {"1", *round_trips.published}, "every version had traffic"
        assert sum(load.by_version.values()) > 20 * len(round_trips.published)


def test_infer_reaches_the_version_that_is_published_and_after_a_rollback_the_one_before(
    round_trips: RoundTrips,
) -> None:
    for load in round_trips.loads:
        assert load.inferred == {"1", *round_trips.published}


def test_a_rollback_moves_traffic_within_two_seconds(round_trips: RoundTrips) -> None:
    assert all(seconds < 2 for seconds in round_trips.rollback_s)
    assert round_trips.verb_code == 0
    assert "version 1 is live" in round_trips.verb_line
    assert round_trips.verb_s < 2, "the start of the process included"


def test_an_unloaded_version_takes_its_metrics_with_it(round_trips: RoundTrips, shared_stand: Stand) -> None:
    version = round_trips.published[-1]
    assert shared_stand.controls[0].wait_unloaded(CAPTIONER, int(version), 10)
    with urlopen(f"http://{shared_stand.servers[0].metrics_address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'captioner_slots{version="1"} ' in text
    assert f'version="{version}"' not in "".join(re.findall(r"^captioner_.*", text, re.MULTILINE))


def test_a_server_started_after_a_killed_publish_serves_the_version_that_was_live(
    replica: int, stand: Stand, exports: list[Path]
) -> None:
    assert any(entry.reason.endswith("died") for entry in stand.store.quarantined().values())
    with Client(stand.servers[replica].grpc_address) as client:
        caption = client.caption(PHOTOS[0])
    assert caption.details.version == "1"
    assert caption.text == stand.expected[revision(exports[0])][0]


@pytest.mark.parametrize(
    ("kind", "servers", "reason"),
    [
        pytest.param("truncated", 1, "sha256", marks=EXHAUSTIVE),
        ("checksum", 1, "sha256"),
        ("graph", 1, "NoSuchOperator"),
        ("features", 2, "on .* features differ by"),
        pytest.param("weights", 1, "golden caption has tokens", marks=EXHAUSTIVE),
        pytest.param("nan", 2, "golden caption failed: .* not numbers", marks=EXHAUSTIVE),
    ],
)
def test_a_version_that_fails_on_one_server_is_quarantined_and_the_previous_one_serves_on_all(
    replica: int, stand: Stand, exports: list[Path], tmp_path: Path, kind: str, servers: int, reason: str
) -> None:
    bad, controls = damaged(exports[1], tmp_path / "bad", kind), stand.controls[:servers]
    with stand.load(0) as load, stand.load(replica) as replica_load:
        with pytest.raises(CaptionerError, match=reason):
            publish(bad, stand.store, controls, quiet)
        assert stand.live(0) == stand.live(replica) == ("1", revision(exports[0]))
        # A version that is refused before it is loaded leaves the requests no time.
        assert_soon(lambda: bool(load.by_version and replica_load.by_version), 20)
    assert load.faults == replica_load.faults == []
    assert set(load.by_version) == set(replica_load.by_version) == {"1"}
    number, entry = list(stand.store.quarantined().items())[-1]
    assert entry.state == "refused"
    assert re.search(reason, entry.reason)
    for model in VERSIONED:
        assert not stand.store.folder(model, number).exists()
        for control in controls:
            assert control.wait_unloaded(model, number, 20)
            assert control.loaded(model) == {1}
            assert control.is_ready()


def test_model_control_needs_the_repositorys_key(
    stand: Stand, exports: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_ADMIN_KEY", "a guess")
    arguments = ["--repository", str(stand.store.path), "--server", stand.address]
    assert cli.main(["publish", str(exports[1]), *arguments]) == 2
    assert "ACCESS_DENIED" in capsys.readouterr().err
    monkeypatch.delenv("CAPTIONER_ADMIN_KEY")
    assert stand.live()[0] == "1"
    assert (stand.store.path / ".admin-key").stat().st_mode & 0o077 == 0
