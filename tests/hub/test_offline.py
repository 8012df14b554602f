"""Pulled models without a network, concurrent pulls, and the disk."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from captioner.errors import ArtefactBroken, CacheUnwritable, HubUnreachable
from captioner.hub import resolve as names
from captioner.hub.cache import Snapshot
from captioner.hub.pull import SINGLE, pull
from tests.support.hub_files import CONFIG, MODEL, repository, sharded, weights
from tests.support.hub_server import Hub


@pytest.mark.parametrize("revision", [None, "main", "a/branch", "the commit"])
def test_a_pulled_model_is_used_without_a_network_and_its_commit_logged(
    hub: Hub,
    cut: Callable[[], None],
    commit: str,
    tiny_files: dict[str, bytes],
    revision: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = hub.commit(MODEL, tiny_files | {"README.md": b"other"}, branch="a/branch")
    wanted = commit if revision == "the commit" else revision
    pull(MODEL, wanted)
    cut()
    capsys.readouterr()
    found = names.find(MODEL, wanted)
    assert found.revision == (other if revision == "a/branch" else commit)
    log = capsys.readouterr().err
    assert log == "" if revision == "the commit" else found.revision in log


def test_the_error_for_an_incomplete_cache_names_the_missing_files(
    hub: Hub, cut: Callable[[], None], commit: str
) -> None:
    folder = pull(MODEL).folder
    for name in (SINGLE, "tokenizer.json"):
        (folder / name).resolve().unlink()
    cut()
    for revision in ("main", commit):
        with pytest.raises(HubUnreachable, match=rf"lacks {SINGLE}, tokenizer\.json$"):
            names.find(MODEL, revision)


def test_a_model_that_was_never_pulled_is_an_error_without_a_network(
    hub: Hub, cut: Callable[[], None], commit: str
) -> None:
    cut()
    with pytest.raises(HubUnreachable, match=f"does not hold {MODEL} at main") as error:
        names.find(MODEL)
    assert ("HF_HUB_OFFLINE is set" in str(error.value)) == constants.HF_HUB_OFFLINE
    with pytest.raises(HubUnreachable):
        names.latest_commit(MODEL, "main")


def test_files_that_huggingface_hub_has_downloaded_are_verified_and_used_without_a_network(
    hub: Hub, cut: Callable[[], None], tiny_files: dict[str, bytes]
) -> None:
    shards = ("model-1-of-3.safetensors", "model-2-of-3.safetensors")
    commit = hub.commit(MODEL, sharded(tiny_files, *shards))
    folder = Path(huggingface_hub.snapshot_download(MODEL))
    cut()
    assert names.find(MODEL).revision == commit
    blob = (folder / shards[0]).resolve()
    right = blob.read_bytes()
    blob.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(ArtefactBroken, match=shards[0]):
        names.find(MODEL)
    blob.write_bytes(right)
    (folder / shards[1]).unlink()
    (folder / CONFIG).unlink()
    with pytest.raises(HubUnreachable, match=f"lacks {CONFIG}, {shards[1]}"):
        names.find(MODEL)


def test_a_complete_cached_commit_needs_no_request(hub: Hub, commit: str) -> None:
    pull(MODEL, commit)
    hub.asked.clear()
    assert names.find(MODEL, commit).revision == commit
    assert hub.asked == []


def test_hf_hub_cache_sets_the_folder(hub: Hub, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert tmp_path / "elsewhere" in names.find(MODEL).folder.parents


def test_two_concurrent_pulls_download_a_model_once(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    hub.fault(SINGLE, "slow")
    pulled: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: pulled.append(pull(MODEL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [snapshot.faults() for snapshot in pulled] == [{}, {}]
    assert hub.sent(SINGLE) == len(tiny_files[SINGLE])


def test_a_disk_that_is_too_small_is_an_error_before_the_weights_are_downloaded(
    hub: Hub, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(MODEL, tiny_files | {SINGLE: weights(5_000_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(CacheUnwritable, match=r"needs 5\.0 MB more in .*hub, where 1\.0 MB are free"):
        pull(MODEL)
    assert hub.sent(SINGLE) == 0


def test_the_error_for_a_full_disk_says_how_much_is_needed(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    part = repository() / "captioner" / "parts" / hashlib.sha256(tiny_files[SINGLE]).hexdigest()
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")  # every write to it fails with ENOSPC
    with pytest.raises(CacheUnwritable, match=r"cannot hold the 0\.3 MB of .*: No space left on device"):
        pull(MODEL)


def test_a_read_only_cache_is_used(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(MODEL)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("WeakFileLock", "_write"):
        monkeypatch.setattr(f"captioner.hub.cache.{name}", refuse)
    assert pull(MODEL).commit == commit
