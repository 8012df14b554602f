"""Publish and rollback without a server, and the verbs that list and change versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from captioner import cli
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import QUARANTINE, VERSIONED, VersionStore
from captioner.errors import ArtefactBroken
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.publish.versions import versions
from captioner.wire import CAPTIONER
from tests.support.publishing import complete_versions, quiet, text_export


def test_an_empty_repository_has_no_version_and_says_what_to_do(store: VersionStore) -> None:
    assert store.versions() == {}
    with pytest.raises(ArtefactBroken, match="holds no published model"):
        store.live()
    with pytest.raises(ArtefactBroken, match="no version before"):
        rollback(store, (), quiet)


def test_version_numbers_increase_and_are_never_reused(store: VersionStore, exported: Path) -> None:
    assert [publish(exported, store, (), quiet) for _ in range(3)] == [1, 2, 3]
    assert rollback(store, (), quiet) == 2
    assert publish(exported, store, (), quiet) == 4
    assert complete_versions(store) == [1, 2, 4]
    assert store.quarantined()[3].state == "rolled back"


def test_a_rollback_needs_only_the_repository_and_a_quarantined_version_can_be_published_again(
    store: VersionStore, tmp_path: Path
) -> None:
    for letter in "ab":
        publish(text_export(tmp_path / letter, letter * 40), store, (), quiet)
    shutil.rmtree(tmp_path / "a")
    rollback(store, (), quiet)
    assert store.versions()[store.live()].revision == "a" * 40
    publish(store.path / QUARANTINE / "2", store, (), quiet)
    assert store.versions()[store.live()].revision == "b" * 40
    assert complete_versions(store) == [1, 3]


def test_version_1_keeps_the_code_when_it_is_quarantined_or_pruned(store: VersionStore, exported: Path) -> None:
    code = (store.folder(CAPTIONER, 1) / "model.py").read_bytes()
    (exported / CAPTIONER / "weights").write_text("another")
    with pytest.raises(ArtefactBroken, match="sha256"):
        publish(exported, store, (), quiet)
    assert store.versions() == {}
    assert (store.folder(CAPTIONER, 1) / "model.py").read_bytes() == code
    for _ in range(4):
        publish(text_export(exported), store, (), quiet, keep=2)
    assert complete_versions(store) == [4, 5]
    assert (store.folder(CAPTIONER, 1) / "model.py").read_bytes() == code
    assert (store.folder(CAPTIONER, 5) / "model.py").read_bytes() == code


@pytest.mark.parametrize("keep", [-1, 0, 1, 2, 3])
def test_pruning_keeps_the_live_and_the_previous_version(store: VersionStore, exported: Path, keep: int) -> None:
    for _ in range(5):
        publish(exported, store, (), quiet, keep=9)
    store.prune(keep)
    assert complete_versions(store) == [1, 2, 3, 4, 5][-max(keep, 2) :]


@pytest.mark.parametrize("keep", [-1, 0, 1])
def test_keeping_fewer_versions_than_stay_loaded_is_refused_before_anything_changes(
    store: VersionStore, exported: Path, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--no-server", "--repository", str(store.path), f"--keep={keep}"]
    assert cli.main(["publish", str(exported), *options]) == 2
    assert f"keep is {keep}; it must be at least 2" in capsys.readouterr().err
    assert not store.versions() and not store.quarantined()


@pytest.mark.parametrize("damage", ["shorter", "longer", "flipped", "gone"])
@pytest.mark.parametrize("model", VERSIONED)
def test_an_export_with_a_damaged_file_is_quarantined_and_the_reason_names_the_file(
    store: VersionStore, exported: Path, model: str, damage: str
) -> None:
    publish(exported, store, (), quiet)
    path = exported / model / "weights"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"shorter": content[:-1], "longer": content + b"x", "flipped": b"X" + content[1:]}[damage])
    with pytest.raises(ArtefactBroken, match=f"{model}/weights"):
        publish(exported, store, (), quiet)
    assert complete_versions(store) == [1]
    assert f"{model}/weights" in store.quarantined()[2].reason


@pytest.mark.parametrize("name", ["../outside", "captioner/../../outside", "/etc/hostname", "image_encoder/x", ""])
def test_an_export_whose_manifest_names_a_file_outside_is_refused(
    store: VersionStore, exported: Path, name: str
) -> None:
    for model in VERSIONED:
        manifest = Manifest.load(exported / model)
        Manifest(**{**manifest.__dict__, "files": {**manifest.files, name: "0" * 64}}).save(exported / model)
    with pytest.raises(ArtefactBroken, match="not a file of an export"):
        publish(exported, store, (), quiet)
    assert store.versions() == {}


def test_the_list_shows_version_state_model_revision_precision_size_time_and_reason(
    store: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        publish(exported, store, (), quiet)
    (exported / CAPTIONER / "weights").write_text("bad")
    with pytest.raises(ArtefactBroken):
        publish(exported, store, (), quiet)
    rows = versions(store)
    assert [(row.number, row.state) for row in rows] == [(4, "refused"), (3, "live"), (2, "before"), (1, "kept")]
    assert rows[0].when >= rows[1].when >= rows[2].when > 1.7e9
    assert all(row.size > 0 for row in rows)
    assert cli.main(["versions", "--repository", str(store.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["version", "state", "model", "revision", "precision", "size", "when"]
    assert lines[1].split()[:5] == ["4", "refused", "a/b", "a" * 12, "fp32"]
    assert lines[2].strip().startswith("ARTEFACT_BROKEN: ")
    assert lines[3].split()[:2] == ["3", "live"]


def test_the_verbose_list_shows_the_card_and_the_full_commit(
    store: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(exported, store, (), quiet)
    assert cli.main(["versions", "-v", "--repository", str(store.path)]) == 0
    shown = capsys.readouterr().out
    for fact in ("a" * 40, "mit", "org/base", "Photos of cats.", "styles:", "extras:"):
        assert fact in shown
    assert cli.main(["versions", "--json", "--repository", str(store.path)]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["version"], row["state"], row["revision"], row["card"]["license"]) == (1, "live", "a" * 40, "mit")


def test_publish_and_rollback_work_without_a_server(
    store: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--no-server", "--repository", str(store.path)]
    for number in (1, 2):
        assert cli.main(["publish", str(exported), *options]) == 0
        assert f"published: version {number}, a/b@{'a' * 12}" in capsys.readouterr().out
    assert cli.main(["rollback", *options]) == 0
    assert "version 1 is live" in capsys.readouterr().out
    assert cli.main(["rollback", *options]) == 2
    assert "there is no version before" in capsys.readouterr().err


def test_a_named_server_that_does_not_answer_changes_nothing(
    store: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--server", "127.0.0.1:9", "--repository", str(store.path)]
    assert cli.main(["publish", str(exported), *options]) == 2
    assert "SERVER_UNREACHABLE: no server is ready at 127.0.0.1:9" in capsys.readouterr().err
    assert store.versions() == {}
