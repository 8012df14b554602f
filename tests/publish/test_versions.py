"""Version folders: placed, taken back, recovered and pruned, whatever was cut off in between. No server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.published import empty_repository
from captioner import cli
from captioner.artifacts.manifest import Card, Manifest, sha256
from captioner.artifacts.version_store import QUARANTINE, VERSIONED, VersionStore
from captioner.embedded import EMBEDDED
from captioner.errors import ArtefactBroken, RepositoryBusy
from captioner.hub.resolve import find
from captioner.publish.model_control import KEY_FILE, KEY_VARIABLE, admin_key
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.publish.versions import versions
from captioner.wire import CAPTIONER
from tests.artifacts.test_manifest import MANIFEST
from tests.support.killed import leave_begun


def artefact(folder: Path, revision: str = "a" * 40) -> Path:
    """An export in all that version folders are concerned with."""
    shutil.rmtree(folder, ignore_errors=True)
    for model in VERSIONED:
        (folder / model).mkdir(parents=True)
        (folder / model / "weights").write_text(f"{model} {revision}")
    files = {f"{model}/weights": sha256(folder / model / "weights") for model in VERSIONED}
    card = Card("mit", "org/base", "Photos of cats.")
    manifest = Manifest(**{**MANIFEST.__dict__, "files": files, "revision": revision, "card": card})
    for model in VERSIONED:
        manifest.save(folder / model)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> VersionStore:
    return VersionStore(empty_repository(tmp_path / "model_repository"))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return artefact(tmp_path / "exported")


def quiet(_: str) -> None:
    pass


def whole(repository: VersionStore) -> list[int]:
    """The versions that Triton could load, each with all its files; fails where a half is left."""
    for model in VERSIONED:
        numbers = {int(path.name) for path in (repository.path / model).iterdir() if path.name.isdecimal()}
        assert numbers - {1} == set(repository.versions()) - {1}, f"{model} has {numbers}"
    for number, manifest in repository.versions().items():
        manifest.verify(repository.path, str(number))
    return list(repository.versions())


def test_a_cloned_repository_has_no_version_and_says_what_to_do(repository: VersionStore) -> None:
    assert repository.versions() == {}
    with pytest.raises(ArtefactBroken, match="holds no published model"):
        repository.live()
    with pytest.raises(ArtefactBroken, match="no version before"):
        rollback(repository, (), quiet)


def test_versions_count_on_and_a_number_is_never_used_again(repository: VersionStore, exported: Path) -> None:
    assert [publish(exported, repository, (), quiet) for _ in range(3)] == [1, 2, 3]
    assert rollback(repository, (), quiet) == 2
    assert publish(exported, repository, (), quiet) == 4
    assert whole(repository) == [1, 2, 4]
    assert repository.quarantined()[3].state == "rolled back"


def test_a_rollback_needs_no_file_but_those_on_disk_and_its_export_can_be_published_again(
    repository: VersionStore, tmp_path: Path
) -> None:
    for letter in "ab":
        publish(artefact(tmp_path / letter, letter * 40), repository, (), quiet)
    shutil.rmtree(tmp_path / "a")
    rollback(repository, (), quiet)
    assert repository.versions()[repository.live()].revision == "a" * 40
    publish(repository.path / QUARANTINE / "2", repository, (), quiet)
    assert repository.versions()[repository.live()].revision == "b" * 40
    assert whole(repository) == [1, 3]


def test_version_1_keeps_the_cloned_code_when_it_is_set_aside_or_pruned(
    repository: VersionStore, exported: Path
) -> None:
    code = (repository.folder(CAPTIONER, 1) / "model.py").read_bytes()
    (exported / CAPTIONER / "weights").write_text("another")
    with pytest.raises(ArtefactBroken, match="sha256"):
        publish(exported, repository, (), quiet)
    assert repository.versions() == {}
    assert (repository.folder(CAPTIONER, 1) / "model.py").read_bytes() == code
    for _ in range(4):
        publish(artefact(exported), repository, (), quiet, keep=2)
    assert whole(repository) == [4, 5]
    assert (repository.folder(CAPTIONER, 1) / "model.py").read_bytes() == code
    assert (repository.folder(CAPTIONER, 5) / "model.py").read_bytes() == code


@pytest.mark.parametrize("keep", [-1, 0, 1, 2, 3])
def test_pruning_spares_the_live_version_and_the_one_before(
    repository: VersionStore, exported: Path, keep: int
) -> None:
    for _ in range(5):
        publish(exported, repository, (), quiet, keep=9)
    repository.prune(keep)
    assert whole(repository) == [1, 2, 3, 4, 5][-max(keep, 2) :]


@pytest.mark.parametrize("keep", [-1, 0, 1])
def test_a_setting_that_would_keep_too_few_is_refused_before_anything_is_done(
    repository: VersionStore, exported: Path, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--no-server", "--repository", str(repository.path), f"--keep={keep}"]
    assert cli.main(["publish", str(exported), *there]) == 2
    assert f"keep is {keep}; it must be at least 2" in capsys.readouterr().err
    assert not repository.versions() and not repository.quarantined()


@pytest.mark.parametrize("damage", ["shorter", "longer", "flipped", "gone"])
@pytest.mark.parametrize("model", VERSIONED)
def test_an_export_with_a_wrong_byte_is_refused_by_name_and_set_aside_with_the_reason(
    repository: VersionStore, exported: Path, model: str, damage: str
) -> None:
    publish(exported, repository, (), quiet)
    path = exported / model / "weights"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"shorter": content[:-1], "longer": content + b"x", "flipped": b"X" + content[1:]}[damage])
    with pytest.raises(ArtefactBroken, match=f"{model}/weights"):
        publish(exported, repository, (), quiet)
    assert whole(repository) == [1]
    assert f"{model}/weights" in repository.quarantined()[2].reason


@pytest.mark.parametrize("name", ["../outside", "captioner/../../outside", "/etc/hostname", "image_encoder/x", ""])
def test_an_export_whose_manifest_reaches_outside_is_refused(
    repository: VersionStore, exported: Path, name: str
) -> None:
    for model in VERSIONED:
        manifest = Manifest.load(exported / model)
        Manifest(**{**manifest.__dict__, "files": {**manifest.files, name: "0" * 64}}).save(exported / model)
    with pytest.raises(ArtefactBroken, match="no file of an export"):
        publish(exported, repository, (), quiet)
    assert repository.versions() == {}


STEPS = ["stage", "place vision_encoder", "place preprocess", "place captioner", "confirm"]


def begin(repository: VersionStore, exported: Path, steps: int) -> None:
    """The first `steps` of a publish whose process is then gone."""
    version = leave_begun(repository, exported, VERSIONED[: steps - 1])
    if steps == len(STEPS):
        repository.confirm(version)


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1), ids=lambda steps: STEPS[steps - 1])
def test_a_publish_that_dies_after_a_step_leaves_the_live_version(
    repository: VersionStore, exported: Path, steps: int
) -> None:
    publish(exported, repository, (), quiet)
    begin(repository, exported, steps)
    dead = repository.recover()
    if steps == len(STEPS):
        assert (dead, whole(repository)) == ([], [1, 2])
    else:
        assert (dead, whole(repository)) == ([2], [1])
        assert "died" in repository.quarantined()[2].reason
    assert repository.recover() == []
    assert publish(exported, repository, (), quiet) == 3


@pytest.mark.parametrize("moved", [1, 2, 3])
def test_a_rollback_that_dies_between_two_folders_is_ended_by_the_next_start(
    repository: VersionStore, exported: Path, moved: int
) -> None:
    for _ in range(2):
        publish(exported, repository, (), quiet)
    for model in list(reversed(VERSIONED))[:moved]:
        repository.quarantine(model, 2)
    repository.recover()
    assert whole(repository) == [1]
    assert publish(exported, repository, (), quiet) == 3


def test_a_rollback_after_an_unfinished_publish_takes_back_that_and_no_more(
    repository: VersionStore, exported: Path
) -> None:
    for _ in range(2):
        publish(exported, repository, (), quiet)
    begin(repository, exported, 4)
    assert rollback(repository, (), quiet) == 2
    assert whole(repository) == [1, 2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["publish", "rollback", "prune", "recover", "bad", *"12345"]), max_size=12))
def test_whatever_is_done_or_dies_the_live_version_is_whole(
    tmp_path_factory: pytest.TempPathFactory, doings: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    repository = VersionStore(empty_repository(folder / "model_repository"))
    live: list[str] = []  # revisions, the last is live
    for number, doing in enumerate(doings):
        exported = artefact(folder / "exported", f"{number:040x}")
        if doing == "publish":
            publish(exported, repository, (), quiet)
            live.append(f"{number:040x}")
        elif doing == "rollback" and len(repository.versions()) > 1:
            rollback(repository, (), quiet)
            live.pop()
        elif doing == "prune":
            repository.prune(2)
        elif doing == "bad":
            (exported / CAPTIONER / "weights").write_text("bad")
            with pytest.raises(ArtefactBroken):
                publish(exported, repository, (), quiet)
        elif doing.isdecimal():
            begin(repository, exported, int(doing))
            live += [f"{number:040x}"] if int(doing) == len(STEPS) else []
        repository.recover()
        whole(repository)
        found = [manifest.revision for manifest in repository.versions().values()]
        assert found == live[-len(found) :] if found else not live


def test_only_one_process_changes_versions_at_a_time(repository: VersionStore, exported: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with repository.lock():
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(RepositoryBusy, match="another process"):
        publish(exported, repository, (), quiet)
    done.set()
    thread.join()
    assert publish(exported, repository, (), quiet) == 1


def test_versions_published_by_another_captioner_get_this_ones_code(repository: VersionStore, exported: Path) -> None:
    for _ in range(2):
        publish(exported, repository, (), quiet)
    code = repository.folder(CAPTIONER, 2) / "model.py"
    code.write_text("of another release")
    repository.recover()
    assert code.read_bytes() == (repository.folder(CAPTIONER, 1) / "model.py").read_bytes()
    before = code.stat().st_mtime_ns
    repository.recover()
    assert code.stat().st_mtime_ns == before, "Triton would load it again"


def test_the_list_has_version_model_revision_precision_size_time_state_and_reason(
    repository: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        publish(exported, repository, (), quiet)
    (exported / CAPTIONER / "weights").write_text("bad")
    with pytest.raises(ArtefactBroken):
        publish(exported, repository, (), quiet)
    rows = versions(repository)
    assert [(row.number, row.state) for row in rows] == [(4, "refused"), (3, "live"), (2, "before"), (1, "kept")]
    assert rows[0].when >= rows[1].when >= rows[2].when > 1.7e9
    assert all(row.size > 0 for row in rows)
    assert cli.main(["versions", "--repository", str(repository.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["version", "state", "model", "revision", "precision", "size", "when"]
    assert lines[1].split()[:5] == ["4", "refused", "a/b", "a" * 12, "fp32"]
    assert lines[2].strip().startswith("ARTEFACT_BROKEN: ")
    assert lines[3].split()[:2] == ["3", "live"]


def test_the_verbose_list_shows_the_card_and_the_whole_commit(
    repository: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(exported, repository, (), quiet)
    assert cli.main(["versions", "-v", "--repository", str(repository.path)]) == 0
    shown = capsys.readouterr().out
    for fact in ("a" * 40, "mit", "org/base", "Photos of cats."):
        assert fact in shown
    assert cli.main(["versions", "--json", "--repository", str(repository.path)]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["version"], row["state"], row["revision"], row["card"]["license"]) == (1, "live", "a" * 40, "mit")


def test_the_verbs_without_a_server_say_that_the_next_start_serves_it(
    repository: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--no-server", "--repository", str(repository.path)]
    for number in (1, 2):
        assert cli.main(["publish", str(exported), *there]) == 0
        assert f"published: version {number}, a/b@{'a' * 12}" in capsys.readouterr().out
    assert cli.main(["rollback", *there]) == 0
    assert "version 1 is live" in capsys.readouterr().out
    assert cli.main(["rollback", *there]) == 2
    assert "there is no version before" in capsys.readouterr().err


def test_a_server_that_was_named_and_is_not_there_changes_nothing(
    repository: VersionStore, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--server", "127.0.0.1:9", "--repository", str(repository.path)]
    assert cli.main(["publish", str(exported), *there]) == 2
    assert "SERVER_UNREACHABLE: no server is ready at 127.0.0.1:9" in capsys.readouterr().err
    assert repository.versions() == {}


def test_a_start_does_not_bring_back_what_was_taken_back(repository: VersionStore, tmp_path: Path) -> None:
    found = find(EMBEDDED)
    for revision in ("a" * 40, found.revision):
        exported = artefact(tmp_path / "exported", revision)
        for model in VERSIONED:
            manifest = Manifest.load(exported / model)
            Manifest(**{**manifest.__dict__, "model": EMBEDDED}).save(exported / model)
        publish(exported, repository, (), quiet)
    rollback(repository, (), quiet)
    command = [sys.executable, "-m", "export", "--repository", str(repository.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{found} was rolled back as version 2; version 1 stays\n"
    assert whole(repository) == [1]


def test_servers_that_start_at_once_share_one_key_that_others_cannot_read(repository: VersionStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: admin_key(repository.path), range(64)))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert (repository.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in repository.path.iterdir() if path.is_file()] == [KEY_FILE], "nothing else is left"


def test_the_key_of_the_environment_goes_first_and_is_kept_nowhere(
    repository: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "given")
    assert admin_key(repository.path) == "given"
    assert not (repository.path / KEY_FILE).exists()


def test_a_key_that_cannot_be_kept_is_another_each_time(tmp_path: Path) -> None:
    assert admin_key(tmp_path / "nowhere") != admin_key(tmp_path / "nowhere")
