"""Every byte of a pulled model is verified."""

from __future__ import annotations

import hashlib
import shutil

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import ArtefactBroken, HubUnreachable
from captioner.hub import resolve as names
from captioner.hub.pull import SINGLE, pull
from tests.support.hub_files import MODEL, digests, repository, weights
from tests.support.hub_server import Hub


def test_a_flipped_bit_in_any_cached_file_is_detected(
    hub: Hub, commit: str, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = pull(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(tiny_files)))
        right = tiny_files[name]
        at, bit = data.draw(st.integers(0, len(right) - 1)), data.draw(st.integers(0, 7))
        path = (snapshot.folder / name).resolve()
        path.write_bytes(right[:at] + bytes([right[at] ^ 1 << bit]) + right[at + 1 :])
        assert snapshot.faults() == {name: "altered"}
        with pytest.raises(ArtefactBroken, match=name):
            names.find(MODEL)
        path.write_bytes(right)
        assert names.find(MODEL).revision == commit

    flip()


def test_a_wrong_byte_in_any_download_is_detected_and_the_file_deleted(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(tiny_files)))
        hub.commit(MODEL, tiny_files)
        hub.fault(name, "wrong", at=data.draw(st.integers(0, len(tiny_files[name]) - 1)))
        with pytest.raises(ArtefactBroken, match=name):
            pull(MODEL)
        assert digests() - {hashlib.sha256(data).hexdigest() for data in tiny_files.values()} == {
            hashlib.sha256(b"").hexdigest()
        }, "the folder holds only correct files and the lock"
        shutil.rmtree(repository())

    flip()


def test_a_wrong_byte_leaves_the_previous_commit_and_the_next_pull_gets_the_new_one(
    hub: Hub, commit: str, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = pull(MODEL)
    new = hub.commit(MODEL, tiny_files | {SINGLE: weights(300_000)})
    hub.fault(SINGLE, "wrong")
    with pytest.raises(
        ArtefactBroken,
        match=rf"{SINGLE}.* sha256 {'.' * 64}; the Hub says {hashlib.sha256(weights(300_000)).hexdigest()}",
    ):
        names.find(MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert names.find(MODEL).revision == commit, "the branch must not move to an incomplete commit"
    assert names.find(MODEL).revision == new
    assert old.faults() == {}


@pytest.mark.parametrize("damage", ["altered", "cut short", "removed"])
def test_only_a_lost_or_altered_file_is_downloaded_again(
    hub: Hub, commit: str, tiny_files: dict[str, bytes], damage: str
) -> None:
    path = (pull(MODEL).folder / SINGLE).resolve()
    right = path.read_bytes()
    path.unlink() if damage == "removed" else path.write_bytes(right[:-1] + bytes(damage == "altered"))
    hub.asked.clear()
    assert (pull(MODEL).folder / SINGLE).read_bytes() == right
    assert [asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent] == ["main", SINGLE]


def test_an_altered_file_is_deleted_even_if_the_download_fails(hub: Hub, commit: str) -> None:
    snapshot = pull(MODEL)
    (snapshot.folder / SINGLE).resolve().write_bytes(b"altered")
    hub.fault(SINGLE, 503, times=4)
    with pytest.raises(HubUnreachable):
        pull(MODEL)
    assert snapshot.faults() == {SINGLE: "missing"}


def test_a_file_that_two_commits_share_is_downloaded_once(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    pull(MODEL)
    hub.commit(MODEL, tiny_files | {"README.md": b"---\nlicense: mit\n---\nBetter.\n"})
    hub.asked.clear()
    pull(MODEL)
    assert hub.sent(SINGLE) == 0 and hub.sent("README.md") > 0
