"""Installing the repository's templates: an empty folder becomes a model repository, an operator's edits are kept."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from captioner.artifacts import repository_templates
from captioner.artifacts.repository_templates import default_repository, install
from captioner.artifacts.version_store import VersionStore
from captioner.errors import ArtefactBroken
from captioner.wire import CAPTIONER, MODELS, PREPROCESS

CONFIG = f"{CAPTIONER}/config.pbtxt"
CODE = f"{CAPTIONER}/1/model.py"


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the templates, which the test may change like a new release."""
    folder = tmp_path / "templates"
    install(folder)
    monkeypatch.setattr(repository_templates, "templates", lambda: folder)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    install(folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and modification time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("state", ["missing", "empty", "new ext4 volume"])
def test_an_empty_folder_becomes_a_model_repository(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "parent" / "repository"
    if state != "missing":
        folder.mkdir(parents=True)
    if state == "new ext4 volume":
        (folder / "lost+found").mkdir()
    assert install(folder) == []
    store = VersionStore(folder)
    with store.lock():
        assert store.recover() == []
        assert store.stage() == 1
    for model in MODELS:
        for name in ("config.pbtxt", "1/model.py"):
            template = repository_templates.templates() / model / name
            assert not template.is_file() or (folder / model / name).read_bytes() == template.read_bytes()
        assert (folder / model / "1").is_dir(), "Triton needs a version folder"


@pytest.mark.parametrize("file", ["notes.txt", "captioner/__init__.py", ".git/config"])
def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ArtefactBroken, match=f"{tmp_path} is not a model repository"):
        install(tmp_path)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [Path(file).parts[0]]


def test_a_path_that_cannot_be_created_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "repository"):
        with pytest.raises(ArtefactBroken, match="cannot be written"):
            install(path)


def test_a_second_install_changes_nothing(repository: Path) -> None:
    before = contents(repository)
    assert install(repository) == []
    assert contents(repository) == before


def test_the_templates_are_not_installed_into_themselves(templates: Path) -> None:
    before = contents(templates)
    assert install(templates) == []
    assert contents(templates) == before


def test_a_repository_that_cannot_be_written_is_left_as_it_is(
    repository: Path, templates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(repository)
    (templates / CONFIG).write_text("# the next release")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert install(repository) == []
    assert contents(repository) == before


def test_an_edited_config_is_kept_and_reported_with_every_install(repository: Path, templates: Path) -> None:
    (repository / CONFIG).write_text("# edited")
    (templates / CONFIG).write_text("# the next release")
    (templates / PREPROCESS / "config.pbtxt").write_text("# the next release")
    for _ in range(2):
        assert install(repository) == [CONFIG]
        assert (repository / CONFIG).read_text() == "# edited"
        assert (repository / PREPROCESS / "config.pbtxt").read_text() == "# the next release"


def test_an_unedited_config_is_replaced_by_each_release(repository: Path, templates: Path) -> None:
    for text in ("# the next release", "# the release after it"):
        (templates / CONFIG).write_text(text)
        assert install(repository) == []
        assert (repository / CONFIG).read_text() == text


def test_an_edit_that_is_undone_is_replaced_again(repository: Path, templates: Path) -> None:
    original = (repository / CONFIG).read_bytes()
    (repository / CONFIG).write_text("# edited")
    (templates / CONFIG).write_text("# the next release")
    assert install(repository) == [CONFIG]
    (repository / CONFIG).write_bytes(original)
    assert install(repository) == []
    assert (repository / CONFIG).read_text() == "# the next release"


@pytest.mark.parametrize("record", [None, "", "[", "5"])
def test_without_a_readable_record_a_changed_config_counts_as_edited(
    repository: Path, templates: Path, record: str | None
) -> None:
    path = repository / ".templates.json"
    path.unlink() if record is None else path.write_text(record)
    assert install(repository) == [], "nothing has changed yet"
    path.unlink()
    (templates / CONFIG).write_text("# the next release")
    assert install(repository) == [CONFIG]


def test_code_is_always_replaced(repository: Path, templates: Path) -> None:
    (repository / CODE).write_text("edited = 1\n")
    assert install(repository) == []
    assert (repository / CODE).read_bytes() == (templates / CODE).read_bytes()
    (templates / CODE).write_text("released = 2\n")
    assert install(repository) == []
    assert (repository / CODE).read_text() == "released = 2\n"


def test_a_deleted_template_is_installed_again(repository: Path) -> None:
    before = {name: data for name, (data, _) in contents(repository).items()}
    shutil.rmtree(repository / PREPROCESS)
    (repository / CODE).unlink()
    install(repository)
    assert {name: data for name, (data, _) in contents(repository).items()}.keys() == before.keys()


def test_servers_that_share_a_volume_may_install_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    install(tmp_path / "expected")
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            shutil.rmtree(folder)
            assert list(threads.map(install, [folder] * 8)) == [[]] * 8
            assert {path for path in contents(folder) if "__pycache__" not in path} == {
                path for path in contents(tmp_path / "expected") if "__pycache__" not in path
            }


def test_the_default_repository_of_a_checkout_is_the_committed_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_REPOSITORY", raising=False)
    assert default_repository() == Path(__file__).parents[2] / "model_repository"


def test_the_default_repository_of_a_wheel_is_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_REPOSITORY", raising=False)
    monkeypatch.setattr(repository_templates, "_PACKAGED", tmp_path)  # exists only in a wheel
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_repository() == Path("/data/captioner/model_repository")
    monkeypatch.setenv("HOME", "/home/someone")
    in_home = Path("/home/someone/.local/share/captioner/model_repository")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert default_repository() == in_home
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_repository() == in_home


@pytest.mark.parametrize("wheel", [False, True])
def test_model_repository_names_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: bool) -> None:
    if wheel:
        monkeypatch.setattr(repository_templates, "_PACKAGED", tmp_path)
    monkeypatch.setenv("MODEL_REPOSITORY", "/models")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_repository() == Path("/models")
