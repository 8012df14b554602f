"""A model repository of release 0.1, with its old code, configs and manifests, is upgraded by the first start.

`repository-0.1.tar.xz` was made by the code of commit 6a4dbc1, with this script in its checkout:

    folder = Path(sys.argv[1])
    repository = Repository(empty_repository(folder / "model_repository"))
    for seed in (1, 2, 3):
        model = tiny.save_vision_encoder_decoder(folder / "tiny", seed)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()  # compresses to a quarter
        model.save_pretrained(folder / "tiny")
        exported = folder / f"exported-{seed}"
        export(hub.find(str(folder / "tiny")), exported, print)
        encoder = onnx.load(exported / "vision_encoder" / "model.onnx")
        for node in encoder.graph.node:
            del node.metadata_props[:]  # stack traces with the machine's paths
        onnx.save(encoder, exported / "vision_encoder" / "model.onnx")
        manifest = Manifest.load(exported / "captioner")
        hashes = {name: sha256(exported / name) for name in manifest.files}
        for name in VERSIONED:
            replace(manifest, files=hashes).save(exported / name)
        publish(exported, repository, (), print)
    rollback(repository, (), print)

and then: tar --sort=name --owner=0 --group=0 --exclude=__pycache__ --exclude=.lock -c model_repository | xz -9e
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient import grpc

from captioner import examples
from captioner.artifacts import repository_templates
from captioner.artifacts.manifest import GOLDEN_IMAGE, Manifest
from captioner.artifacts.version_store import VERSIONED, Quarantined, VersionStore
from captioner.client import Client
from captioner.launcher.supervisor import TritonServer
from captioner.publish.ensure_published import ensure_published
from captioner.publish.model_control import ModelControl
from captioner.publish.warm_standby import load_previous_version
from captioner.wire import CAPTIONER, MODELS, UNARY
from tests.support.unary import infer

ARCHIVE = Path(__file__).parent / "repository-0.1.tar.xz"
VERSIONS = [1, 2]


def unpack(folder: Path) -> Path:
    """The repository as release 0.1 left it: versions 1 and 2, version 3 rolled back."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "model_repository"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return unpack(tmp_path)


@pytest.fixture(scope="module")
def log() -> list[str]:
    """What the first start logged."""
    return []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, log: list[str]) -> VersionStore:
    """The repository after the first start with this release."""
    path = unpack(tmp_path_factory.mktemp("upgrade"))
    ensure_published(None, path, log.append)
    return VersionStore(path)


def test_the_archive_is_a_repository_of_the_old_release(old: Path) -> None:
    assert (old / ".aside" / "3" / "why.json").is_file()
    assert (old / "image_encoder" / "config.pbtxt").is_file()
    assert "captioner.served_model" in (old / CAPTIONER / "2" / "model.py").read_text()
    assert {"frame", "check"} < json.loads((old / CAPTIONER / "2" / "manifest.json").read_text()).keys()


def test_the_live_model_stays_live(store: VersionStore, log: list[str]) -> None:
    assert store.live() == 2
    assert len(log) == 1 and "tiny" in log[0]


def test_the_old_configs_are_replaced_though_no_record_tells_that_nobody_edited_them(store: VersionStore) -> None:
    for model in MODELS:
        config = (store.path / model / "config.pbtxt").read_bytes()
        assert config == (repository_templates.templates() / model / "config.pbtxt").read_bytes()


def test_an_edited_config_of_the_old_release_is_kept_and_reported(old: Path) -> None:
    config = old / CAPTIONER / "config.pbtxt"
    edited = config.read_text() + "# edited\n"
    config.write_text(edited)
    lines: list[str] = []
    ensure_published(None, old, lines.append)
    assert config.read_text() == edited
    assert str(config) in lines[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_loads_and_verifies(store: VersionStore, version: int) -> None:
    assert list(store.versions()) == VERSIONS
    for model in VERSIONED:
        manifest = Manifest.load(store.folder(model, version))
        assert manifest == store.versions()[version]
        manifest.verify(store.path, str(version))
    assert manifest.prompt_template == "{prompt}"
    assert manifest.golden_sample is not None and manifest.golden_sample.caption


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_the_code_of_this_release(store: VersionStore, version: int) -> None:
    for model in VERSIONED:
        template = repository_templates.templates() / model / "1" / "model.py"
        code = store.folder(model, version) / "model.py"
        assert code.is_file() == template.is_file()
        assert not code.is_file() or code.read_bytes() == template.read_bytes()


def test_the_rolled_back_version_is_quarantined_with_its_reason(store: VersionStore, old: Path) -> None:
    assert not (store.path / ".aside").exists()
    why = json.loads((old / ".aside" / "3" / "why.json").read_text())
    assert store.quarantined() == {3: Quarantined(3, "rolled back", "by hand", why["when"])}
    manifest = Manifest.load(store.path / ".quarantine" / "3" / CAPTIONER)
    assert store.quarantined_revision("tiny", manifest.revision) == store.quarantined()[3]
    with store.lock():
        assert store.stage() == 4, "the number of a quarantined version is not used again"
        store.confirm(4)


def test_a_second_start_changes_nothing(store: VersionStore) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}

    before, lines = files(), list[str]()
    ensure_published(None, store.path, lines.append)
    assert files() == before


@pytest.fixture(scope="module")
def server(store: VersionStore) -> Iterator[TritonServer]:
    log_path = store.path.parent / "server.log"
    with TritonServer(store.path, http_port=0, grpc_port=0, metrics_port=0, log_path=log_path) as running:
        yield running


@pytest.mark.triton
@pytest.mark.slow
def test_a_real_server_generates_the_old_golden_caption(store: VersionStore, server: TritonServer) -> None:
    manifest = store.versions()[2]
    assert manifest.golden_sample is not None
    with Client(server.grpc_address) as client:
        caption = client.caption(
            (store.folder(CAPTIONER, 2) / GOLDEN_IMAGE).read_bytes(),
            max_tokens=len(manifest.golden_sample.token_ids),
            repetition_guard=False,
        )
    assert caption.text == manifest.golden_sample.caption
    assert (caption.details.version, caption.details.revision) == ("2", manifest.revision)


@pytest.mark.triton
@pytest.mark.slow
def test_a_real_server_has_the_models_that_the_old_release_lacked(old: Path, server: TritonServer) -> None:
    assert not (old / UNARY).exists()
    image = (examples.FOLDER / "cat.jpg").read_bytes()
    with grpc.InferenceServerClient(server.grpc_address) as plain, Client(server.grpc_address) as client:
        assert infer(grpc, plain, image).text == client.caption(image).text


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_real_server_loads_the_previous_old_version_too(store: VersionStore, server: TritonServer) -> None:
    """For a rollback. A load fails unless the version passes its self-test."""
    control = ModelControl(server.grpc_address, server.admin_key)
    load_previous_version(store, control)
    assert control.loaded(CAPTIONER) == set(VERSIONS)
