"""Fixtures: a repository without a server, and servers on a repository with two exported models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]  # public, but not exported

from benchmarks.published import empty_repository
from captioner.artifacts.version_store import VersionStore
from captioner.examples import PHOTOS
from captioner.hub.pull import pull
from captioner.hub.resolve import ResolvedModel, find
from captioner.publish.ensure_published import ensure_published
from captioner.publish.publish import publish
from export.export import export
from tests.support import tiny
from tests.support.hub_server import Hub
from tests.support.killed import leave_unfinished
from tests.support.publishing import MODEL, Expected, Stand, quiet, revision, text_export, with_use


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(empty_repository(tmp_path / "model_repository"))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return text_export(tmp_path / "exported")


@pytest.fixture(scope="package")
def models(tiny_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> list[ResolvedModel]:
    """A model that was pulled from the Hub and then resolved with the network cut, and one in a local folder."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    with pytest.MonkeyPatch.context() as patch:
        hub.patch(patch)
        close_session()
        hub.commit(MODEL, with_use(tiny_files, "First."))
        pull(MODEL, log=quiet)
        hub.stop()
        pulled = find(MODEL)
    close_session()
    folder = tmp_path_factory.mktemp("models") / "other"
    folder.mkdir()
    tiny.save_vision_encoder_decoder(folder, seed=4)
    return [pulled, find(str(folder))]


@pytest.fixture(scope="package")
def exports(models: list[ResolvedModel], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The exports of both models."""
    folders = [tmp_path_factory.mktemp("exports") / name for name in ("one", "other")]
    for model, folder in zip(models, folders, strict=True):
        export(model, folder, quiet)
    return folders


@pytest.fixture(scope="package")
def expected(exports: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Each model's captions of the example photos, where no other model is loaded."""
    from captioner.serving.in_process import InProcessModel

    captions = {}
    for exported in exports:
        repository = empty_repository(tmp_path_factory.mktemp("alone") / "model_repository")
        publish(exported, VersionStore(repository), (), quiet)
        model = InProcessModel(repository, in_flight=4, threads=1)
        captions[revision(exported)] = [model.caption(photo.read_bytes(), {}).text for photo in PHOTOS]
        model.close()
    one, other = captions.values()
    assert not set(one) & set(other), "each caption must tell which model wrote it"
    return captions


@pytest.fixture(scope="package")
def shared_stand(exports: list[Path], expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("served")
    stand = Stand(VersionStore(empty_repository(folder / "model_repository")), expected)
    publish(exports[0], stand.store, (), quiet)
    with stand.start(folder / "server.log"):
        yield stand


@pytest.fixture(scope="package")
def replica(shared_stand: Stand, exports: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The index of a second server in the stand, started after a publish was killed."""
    shared_stand.reset()
    leave_unfinished(shared_stand.store, exports[1])
    ensure_published(None, shared_stand.store.path, quiet)  # as at each start
    with shared_stand.start(tmp_path_factory.mktemp("replica") / "server.log"):
        yield 1


@pytest.fixture
def stand(shared_stand: Stand) -> Stand:
    """The running servers with version 1 live."""
    shared_stand.reset()
    return shared_stand
