"""Publishing into a running Triton: traffic moves to what was checked, loses no request, and moves back at once."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.published import empty_repository
from captioner import cli, wire
from captioner.artifacts.manifest import Manifest, sha256
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.errors import CaptionerError
from captioner.examples import PHOTOS
from captioner.hub.resolve import find
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import ModelControl, admin_key
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.publish.warm_standby import load_previous_version
from export.export import export
from tests.support import tiny
from tests.support.killed import leave_begun, publish_killed

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

KILLED_STEPS = 14
Expected = dict[str, list[str]]  # revision → the caption of each example


@dataclass
class Load:
    """Clients that caption and stream without a pause, and what went wrong for them."""

    address: str
    expected: Expected
    clients: int
    faults: list[str] = field(default_factory=list)
    by_version: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        with Client(self.address) as client:
            while not self.stop.is_set():
                number = next(self._numbers)
                example = number % len(PHOTOS)
                # Another file each time, so that the encoder is asked as well.
                photo = PHOTOS[example].read_bytes() + str(number).encode()
                try:
                    if number % 2:
                        caption = client.caption(photo)
                        text, details = caption.text, caption.details
                    else:
                        with client.stream(photo) as stream:
                            text = "".join(stream)
                            assert stream.details is not None
                            details = stream.details
                except CaptionerError as error:
                    self.faults.append(error.wire())
                    continue
                self.by_version[details.version] = self.by_version.get(details.version, 0) + 1
                if text != self.expected[details.revision][example]:
                    self.faults.append(f"version {details.version} of {details.revision} said {text!r} of {example}")

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self.run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models whose captions nowhere agree, exported."""
    folder = tmp_path_factory.mktemp("artefacts")
    for name, seed in {"one": 3, "other": 4}.items():
        (folder / "models" / name).mkdir(parents=True)
        tiny.save_vision_encoder_decoder(folder / "models" / name, seed)
        export(find(str(folder / "models" / name)), folder / name, lambda _: None)
    return [folder / "one", folder / "other"]


@dataclass(frozen=True)
class Stand:
    """A server on a repository with the first model live."""

    repository: VersionStore
    server: TritonServer
    control: ModelControl
    expected: Expected

    def load(self, clients: int = 3) -> Load:
        return Load(self.server.grpc_address, self.expected, clients)

    def live(self) -> tuple[str, str]:
        """Version and revision of a caption of this moment."""
        with Client(self.server.grpc_address) as client:
            details = client.caption(PHOTOS[0]).details
        return details.version, details.revision


@pytest.fixture(scope="module")
def expected(artefacts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """What each model says of the examples where nothing else is loaded."""
    from captioner.serving.in_process import InProcessModel

    said = {}
    for artefact in artefacts:
        repository = empty_repository(tmp_path_factory.mktemp("alone") / "model_repository")
        publish(artefact, VersionStore(repository), (), lambda _: None)
        model = InProcessModel(repository, in_flight=4, threads=1)
        said[Manifest.load(artefact / wire.CAPTIONER).revision] = [
            model.caption(photo.read_bytes(), {}).text for photo in PHOTOS
        ]
        model.close()
    one, other = said.values()
    assert not set(one) & set(other), "a mix-up must be seen"
    return said


@pytest.fixture(scope="module")
def stand(artefacts: list[Path], expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("served")
    repository = VersionStore(empty_repository(folder / "model_repository"))
    publish(artefacts[0], repository, (), lambda _: None)
    key = admin_key(repository.path)
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository.path, log_path=folder / "server.log", admin_key=key, **free) as server:  # type: ignore[arg-type]
        yield Stand(repository, server, ModelControl(server.grpc_address, key), expected)


@pytest.fixture
def fresh(stand: Stand) -> Stand:
    """The stand with the first model live, whatever the test before left."""
    with stand.repository.lock():
        stand.repository.recover()
    while len(stand.repository.versions()) > 1:
        rollback(stand.repository, (stand.control,), lambda _: None)
    if stand.control.loaded(wire.CAPTIONER) != {1}:
        load_previous_version(stand.repository, stand.control)
    return stand


def revision(artefact: Path) -> str:
    return Manifest.load(artefact / wire.CAPTIONER).revision


def test_ten_publishes_and_ten_rollbacks_under_load_lose_and_mix_up_nothing(
    fresh: Stand, artefacts: list[Path]
) -> None:
    seconds: list[float] = []
    times: list[float] = []
    with fresh.load() as load:
        for number in range(10):
            version = publish(artefacts[1], fresh.repository, (fresh.control,), lambda _: None)
            assert fresh.live() == (str(version), revision(artefacts[1])), f"publish {number}"
            began = time.monotonic()
            rollback(fresh.repository, (fresh.control,), lambda _: times.append(time.monotonic()))
            seconds.append(times[-1] - began)
            assert fresh.live()[1] == revision(artefacts[0]), f"rollback {number}"
    assert load.faults == []
    assert len(load.by_version) == 11, "every version had traffic"
    assert sum(load.by_version.values()) > 200
    print(f"rollbacks took {min(seconds):.2f}-{max(seconds):.2f} s; {load.by_version}")
    assert max(seconds) < 2


def test_the_rollback_verb_moves_traffic_within_two_seconds_of_its_start(fresh: Stand, artefacts: list[Path]) -> None:
    publish(artefacts[1], fresh.repository, (fresh.control,), lambda _: None)
    command = [sys.executable, "-m", "captioner.cli", "rollback", "--repository", str(fresh.repository.path)]
    command += ["--server", fresh.server.grpc_address]
    with fresh.load() as load:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            seconds = time.monotonic() - began
            process.stdout.read()
    assert process.returncode == 0
    assert "version 1 is live" in first
    assert seconds < 2
    assert load.faults == []


def damaged(artefact: Path, folder: Path, kind: str) -> Path:
    """A copy of an export with a fault; those that hashes cannot see have the right hashes."""
    copy = shutil.copytree(artefact, folder)
    graph, weights = copy / "vision_encoder" / "model.onnx", copy / "captioner" / "decoder" / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "checksum":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif kind == "graph":
        model = onnx.load(graph)
        model.graph.node[5].op_type = "NoSuchOperator"
        onnx.save(model, graph)
    elif kind == "features":
        model = onnx.load(graph)
        biggest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        biggest.raw_data = (onnx.numpy_helper.to_array(biggest) * 3).tobytes()
        onnx.save(model, graph)
    elif kind == "nan":
        tensors = load_file(weights)
        name = max(tensors, key=lambda each: tensors[each].size)
        tensors[name] = np.full_like(tensors[name], np.nan)
        save_file(tensors, weights, {"format": "pt"})
    elif kind == "weights":
        tensors = load_file(weights)
        save_file({name: -each for name, each in tensors.items()}, weights, {"format": "pt"})
    if kind not in ("truncated", "checksum"):
        for model_name in VERSIONED:
            path = copy / model_name / "manifest.json"
            values = json.loads(path.read_text())
            values["files"] = {name: sha256(copy / name) for name in values["files"]}
            path.write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "sha256"),
        ("checksum", "sha256"),
        ("graph", "NoSuchOperator"),
        ("features", "on .* features differ by"),
        ("nan", "check caption"),
        ("weights", "check caption"),
    ],
)
def test_a_bad_version_is_set_aside_with_the_reason_and_the_one_before_serves_on(
    fresh: Stand, artefacts: list[Path], tmp_path: Path, kind: str, reason: str
) -> None:
    bad = damaged(artefacts[1], tmp_path / "bad", kind)
    with fresh.load() as load:
        with pytest.raises(CaptionerError, match=reason):
            publish(bad, fresh.repository, (fresh.control,), lambda _: None)
        assert fresh.live() == ("1", revision(artefacts[0]))
    assert load.faults == []
    assert set(load.by_version) == {"1"}
    number, aside = list(fresh.repository.quarantined().items())[-1]
    assert aside.state == "refused"
    assert fresh.control.loaded(wire.CAPTIONER) == {1}
    assert fresh.control.is_ready()
    for model in VERSIONED:
        assert not fresh.repository.folder(model, number).exists()
        assert fresh.control.wait_unloaded(model, number, 10)


@pytest.mark.parametrize("step", [*map(str, range(1, KILLED_STEPS + 1)), "load captioner"])
def test_a_publish_killed_at_any_step_leaves_the_live_version_serving(
    fresh: Stand, artefacts: list[Path], tmp_path: Path, step: str
) -> None:
    begun = publish_killed(step, artefacts[1], fresh.repository.path, fresh.server.grpc_address, tmp_path / "steps")
    with fresh.load() as load:
        time.sleep(0.5)
    assert load.faults == []
    with fresh.repository.lock():
        fresh.repository.recover()  # as every start and every publish begins
    live, confirmed = fresh.repository.live(), begun[-1] == "prune"
    assert (live == 1) != confirmed
    for model in VERSIONED:
        numbers = {int(path.name) for path in (fresh.repository.path / model).glob("[0-9]*")}
        assert numbers == {1, live}
    fresh.repository.verify()


def test_a_publish_that_is_told_to_stop_takes_its_version_back(fresh: Stand, artefacts: list[Path]) -> None:
    command = [sys.executable, "-m", "captioner.cli", "publish", str(artefacts[1])]
    command += ["--repository", str(fresh.repository.path), "--server", fresh.server.grpc_address]
    with fresh.load() as load, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("loading captioner" in line for line in process.stdout)
        process.terminate()
        process.stdout.read()
    assert process.returncode == 130
    assert load.faults == []
    assert fresh.live() == ("1", revision(artefacts[0]))
    number, aside = list(fresh.repository.quarantined().items())[-1]
    assert (aside.state, aside.reason) == ("refused", "it was stopped")
    assert fresh.control.wait_unloaded(wire.CAPTIONER, number, 10)


def test_replicas_on_one_repository_move_together_and_a_version_that_fails_on_one_leaves_both(
    fresh: Stand, artefacts: list[Path], tmp_path: Path
) -> None:
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "admin_key": admin_key(fresh.repository.path)}
    with TritonServer(fresh.repository.path, log_path=tmp_path / "server.log", **free) as server:  # type: ignore[arg-type]
        other = Stand(
            fresh.repository, server, ModelControl(server.grpc_address, fresh.server.admin_key), fresh.expected
        )
        both = (fresh.control, other.control)
        # One client each: two servers load on the same cores, three times as slowly under six.
        with fresh.load(1) as load, other.load(1) as other_load:
            version = str(publish(artefacts[1], fresh.repository, both, lambda _: None))
            assert fresh.live() == other.live() == (version, revision(artefacts[1]))
            with pytest.raises(CaptionerError, match="check caption"):
                publish(damaged(artefacts[1], tmp_path / "bad", "nan"), fresh.repository, both, lambda _: None)
            assert fresh.live() == other.live() == (version, revision(artefacts[1]))
            rollback(fresh.repository, both, lambda _: None)
            assert fresh.live() == other.live() == ("1", revision(artefacts[0]))
        assert load.faults == other_load.faults == []


def test_a_server_started_after_a_killed_publish_serves_the_version_that_was_live(
    artefacts: list[Path], expected: Expected, stand: Stand, tmp_path: Path
) -> None:
    repository = VersionStore(shutil.copytree(stand.repository.path, tmp_path / "model_repository"))
    for number in list(repository.versions())[1:]:
        for model in VERSIONED:
            repository.quarantine(model, number)
        repository.explain(number, "refused", "of another test")
    version = leave_begun(repository, artefacts[1])
    done = subprocess.run(
        [sys.executable, "-m", "export", "--repository", str(repository.path), str(artefacts[0].parent / "models/one")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "is published as version 1" in done.stdout, "what every start begins with"
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        TritonServer(repository.path, log_path=tmp_path / "server.log", **free) as server,  # type: ignore[arg-type]
        Client(server.grpc_address) as client,
    ):
        caption = client.caption(PHOTOS[0])
    assert caption.text == expected[revision(artefacts[0])][0]
    assert repository.quarantined()[version].reason.endswith("died")


def test_a_version_that_ends_takes_its_metrics_with_it(fresh: Stand, artefacts: list[Path]) -> None:
    from urllib.request import urlopen

    version = publish(artefacts[1], fresh.repository, (fresh.control,), lambda _: None)
    fresh.live()
    rollback(fresh.repository, (fresh.control,), lambda _: None)
    assert fresh.control.wait_unloaded(wire.CAPTIONER, version, 10)
    with urlopen(f"http://{fresh.server.metrics_address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'captioner_slots{version="1"} ' in text
    assert f'version="{version}"' not in "".join(re.findall(r"^captioner_.*", text, re.MULTILINE))


def test_model_control_is_shut_to_whoever_has_not_the_repositorys_key(
    fresh: Stand, artefacts: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_ADMIN_KEY", "a guess")
    arguments = ["--repository", str(fresh.repository.path), "--server", fresh.server.grpc_address]
    assert cli.main(["publish", str(artefacts[1]), *arguments]) == 2
    assert "ACCESS_DENIED" in capsys.readouterr().err
    monkeypatch.delenv("CAPTIONER_ADMIN_KEY")
    assert fresh.live()[0] == "1"
    assert (fresh.repository.path / ".admin-key").stat().st_mode & 0o077 == 0
