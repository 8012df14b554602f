"""What a start publishes before its server runs: `ensure_published`, and the command `python -m export`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.published import empty_repository
from captioner.artifacts.version_store import VersionStore
from captioner.embedded import EMBEDDED
from captioner.hub.resolve import ResolvedModel, find
from captioner.publish import publish as publishing
from captioner.publish.ensure_published import ensure_published
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.wire import CAPTIONER
from export import __main__ as command
from tests.support.killed import leave_unfinished
from tests.support.publishing import complete_versions, quiet, text_export


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def published(exports: list[Path], models: list[ResolvedModel], tmp_path: Path) -> VersionStore:
    """A repository whose version 1 is the model in a local folder."""
    store = VersionStore(empty_repository(tmp_path / "model_repository"))
    publish(exports[1], store, (), quiet)
    return store


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ResolvedModel]:
    """The models that are to be exported; the export of the embedded model takes ten seconds."""
    models: list[ResolvedModel] = []
    monkeypatch.setattr(publishing, "export_and_publish", lambda found, *_: models.append(found))
    return models


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    return command.main()


def test_a_live_model_is_not_published_again(
    published: VersionStore, models: list[ResolvedModel], log: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in published.path.rglob("*")}
    ensure_published(str(models[1].folder), published.path, log.append)
    ensure_published(None, published.path, log.append)
    assert log == [f"{models[1]} is published as version 1", "other is published as version 1"]
    assert {path: path.stat().st_mtime_ns for path in published.path.rglob("*")} == before


def test_another_named_model_is_published(
    published: VersionStore, models: list[ResolvedModel], tmp_path: Path, asked: list[ResolvedModel]
) -> None:
    another = shutil.copytree(models[1].folder, tmp_path / "another")
    ensure_published(str(another), published.path, quiet)
    assert asked == [find(str(another))]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_another_named_model_is_exported_and_becomes_the_next_version(
    published: VersionStore, models: list[ResolvedModel], tmp_path: Path, log: list[str]
) -> None:
    another = shutil.copytree(models[1].folder, tmp_path / "another")
    (another / "extra.json").write_text("{}")
    ensure_published(str(another), published.path, log.append)
    assert log[-1] == f"published: version 2, {find(str(another))}"
    assert {number: found.model for number, found in published.versions().items()} == {1: "other", 2: "another"}
    for number, manifest in published.versions().items():
        manifest.verify(published.path, str(number))
    assert (published.folder(CAPTIONER, 2) / "model.py").is_file()


def test_an_empty_repository_gets_the_embedded_model(tmp_path: Path, asked: list[ResolvedModel]) -> None:
    ensure_published(None, tmp_path / "model_repository", quiet)
    assert asked == [find(EMBEDDED)]
    assert (tmp_path / "model_repository" / CAPTIONER / "config.pbtxt").is_file()


@pytest.mark.parametrize(("model", "replaced"), [(EMBEDDED, True), ("org/model", False)])
def test_a_start_without_a_model_replaces_only_the_embedded_model_of_another_release(
    store: VersionStore, tmp_path: Path, asked: list[ResolvedModel], model: str, replaced: bool
) -> None:
    publish(text_export(tmp_path / "exported", model=model), store, (), quiet)
    ensure_published(None, store.path, quiet)
    assert asked == ([find(EMBEDDED)] if replaced else [])


def test_a_start_publishes_a_rolled_back_model_again_only_if_it_is_named(
    store: VersionStore, tmp_path: Path, asked: list[ResolvedModel], log: list[str]
) -> None:
    embedded = find(EMBEDDED)
    for revision in ("a" * 40, embedded.revision):
        publish(text_export(tmp_path / "exported", revision, EMBEDDED), store, (), quiet)
    rollback(store, (), quiet)
    ensure_published(None, store.path, log.append)
    assert log == [f"{embedded} was rolled back as version 2; version 1 stays live"]
    assert (asked, complete_versions(store)) == ([], [1])
    ensure_published(EMBEDDED, store.path, log.append)
    assert asked == [embedded]


def test_a_start_quarantines_an_unfinished_publish(store: VersionStore, exported: Path, log: list[str]) -> None:
    publish(exported, store, (), quiet)
    unfinished = leave_unfinished(store, exported)
    ensure_published(None, store.path, log.append)
    assert log == ["a/b is published as version 1"]
    assert store.quarantined()[unfinished].reason.endswith("died")


def test_a_read_only_repository_is_served_as_it_is(
    store: VersionStore, exported: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(exported, store, (), quiet)
    unfinished = leave_unfinished(store, exported)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a test that runs as root can write everywhere
    ensure_published(None, store.path, log.append)
    assert log == [f"a/b is published as version {unfinished}"]
    assert store.quarantined() == {}


def test_an_edited_configuration_is_kept_and_logged(store: VersionStore, exported: Path, log: list[str]) -> None:
    publish(exported, store, (), quiet)
    config = store.path / CAPTIONER / "config.pbtxt"
    config.write_text(config.read_text() + "# edited\n")
    ensure_published(None, store.path, log.append)
    assert log[0].startswith(f"{config} was edited, so it is kept")
    assert config.read_text().endswith("# edited\n")


@pytest.mark.parametrize(
    ("config", "named"),
    [({"model_type": "none-such"}, "concept-encoder-decoder, "), ({}, "has no model_type")],
)
def test_a_model_without_a_family_is_an_error_of_one_line(
    store: VersionStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, str],
    named: str,
) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    assert run(monkeypatch, folder, "--repository", store.path) == 2
    error = capsys.readouterr().err
    assert error.startswith("MODEL_UNSUPPORTED: ")
    assert named in error
    assert error.count("\n") == 1


def test_a_folder_that_is_not_a_repository_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    assert run(monkeypatch, "--repository", tmp_path) == 2
    error = capsys.readouterr().err
    assert "is not a model repository: it holds files" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_command_prints_each_step_and_returns_0(
    store: VersionStore, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(exported, store, (), quiet)
    assert run(monkeypatch, "--repository", store.path) == 0
    assert capsys.readouterr().out == "a/b is published as version 1\n"
