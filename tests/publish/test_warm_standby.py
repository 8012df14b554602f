"""Which versions stay loaded, and the request for the golden caption; on a server that loads nothing but numbers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from captioner.artifacts.version_store import KEEP_LOADED, VersionStore
from captioner.errors import ArtefactBroken, StartupRefused
from captioner.publish import publish as publishing
from captioner.publish import warm_standby
from captioner.publish.model_control import ModelControl
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.publish.warm_standby import load_previous_version
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER
from tests.support.publishing import quiet, text_export
from tests.support.scripted_server import ScriptedServer


class Recorder(ModelControl):
    """Model control that records which versions are loaded, and how many were at most."""

    def __init__(self, address: str = "nowhere") -> None:
        self.address = address
        self.versions: dict[str, set[int]] = {CAPTIONER: set(), PREPROCESS: set(), VISION_ENCODER: set()}
        self.max_loaded = 0

    def load(self, repository: Path, model: str, versions: Collection[int]) -> None:
        assert all((repository / model / str(version)).is_dir() for version in versions)
        self.versions[model] = set(versions)
        captioners, *encoder = self.versions.values()
        assert all(captioners <= part for part in encoder), "a captioner is loaded without its encoder"
        self.max_loaded = max(self.max_loaded, *map(len, self.versions.values()))

    def loaded(self, model: str) -> set[int]:
        return self.versions[model]

    def loaded_by_all(self) -> set[int]:
        """Return the loaded versions, which must be the same for every model."""
        (versions,) = set(map(frozenset, self.versions.values()))
        return set(versions)


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_check_encoder", lambda *_: None)


@pytest.fixture
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_check_endpoint", lambda *_: None)


@pytest.mark.usefixtures("no_endpoint")
@pytest.mark.parametrize("count", [KEEP_LOADED, 3])
def test_the_newest_keep_loaded_versions_stay_loaded_and_never_more(
    store: VersionStore, exported: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for module in (warm_standby, publishing):
        monkeypatch.setattr(module, "KEEP_LOADED", count)
    server = Recorder()
    versions = [publish(exported, store, (server,), quiet, keep=6) for _ in range(5)]
    assert server.loaded_by_all() == set(versions[-count:])
    rollback(store, (server,), quiet)
    assert server.loaded_by_all() == set(versions[-count - 1 : -1])
    assert server.max_loaded == count
    restarted = Recorder()
    load_previous_version(store, restarted)
    assert restarted.loaded_by_all() == server.loaded_by_all()


@pytest.mark.usefixtures("no_endpoint")
def test_a_publish_that_fails_before_it_loads_leaves_the_loaded_versions(store: VersionStore, exported: Path) -> None:
    server = Recorder()
    for _ in range(3):
        publish(exported, store, (server,), quiet)
    (exported / CAPTIONER / "weights").write_text("bad")
    with pytest.raises(ArtefactBroken, match="sha256"):
        publish(exported, store, (server,), quiet)
    assert server.loaded_by_all() == {2, 3}


def test_the_golden_caption_is_requested_again_from_a_busy_server(store: VersionStore, exported: Path) -> None:
    endpoint = ScriptedServer("busy", "busy")
    try:
        assert publish(exported, store, (Recorder(endpoint.address),), quiet) == 1
        assert len(endpoint.requests) == 3
    finally:
        endpoint.close()


def test_a_server_that_answers_with_another_version_fails_the_publish(store: VersionStore, tmp_path: Path) -> None:
    endpoint = ScriptedServer()  # its captions are from version 1
    try:
        server = Recorder(endpoint.address)
        publish(text_export(tmp_path / "a"), store, (server,), quiet)
        with pytest.raises(StartupRefused, match="serves version 1, not 2"):
            publish(text_export(tmp_path / "b", "b" * 40), store, (server,), quiet)
        assert server.loaded_by_all() == {1}
        assert "serves version 1, not 2" in store.quarantined()[2].reason
    finally:
        endpoint.close()
