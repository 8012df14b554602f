"""The admin key of a repository's servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from captioner.artifacts.version_store import VersionStore
from captioner.publish.model_control import KEY_FILE, KEY_VARIABLE, admin_key


def test_servers_that_start_together_share_one_key_that_other_users_cannot_read(store: VersionStore) -> None:
    before = set(store.path.iterdir())
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: admin_key(store.path), range(64)))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert (store.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert set(store.path.iterdir()) - before == {store.path / KEY_FILE}, "no temporary file"


def test_the_key_of_the_environment_takes_precedence_and_is_not_stored(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "given")
    assert admin_key(store.path) == "given"
    assert not (store.path / KEY_FILE).exists()


def test_without_a_writable_repository_each_key_is_new(tmp_path: Path) -> None:
    assert admin_key(tmp_path / "nowhere") != admin_key(tmp_path / "nowhere")
