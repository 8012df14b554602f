"""From a Hub's revision to checked files on this disk, with a real HTTP server in the Hub's place that misbehaves."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.embedded import EMBEDDED, EMBEDDED_FOLDER
from captioner.errors import (
    AccessDenied,
    ArtefactBroken,
    CacheUnwritable,
    HubUnreachable,
    ModelMissing,
    ModelUnsupported,
    StartupRefused,
)
from captioner.families import family
from captioner.hub import api
from captioner.hub import resolve as names
from captioner.hub.cache import Snapshot
from captioner.hub.pull import INDEX, SINGLE, pull
from tests.support.hub_http import Fault
from tests.support.hub_server import Hub

MODEL = "tiny/captioner"
CONFIG = "config.json"
NOT_FOR_US = {
    "modeling_tiny.py": b"raise SystemExit('remote code ran')",
    "pytorch_model.bin": b"pickle" * 100,
    "pytorch_model.bin.index.json": b"{}",
    "flax_model.msgpack": b"flax" * 100,
    "tf_model.h5": b"tf" * 100,
    "model.fp16.safetensors": b"half" * 100,
    "model.fp16.safetensors.index.json": b"{}",
    "onnx/model.onnx": b"onnx" * 100,
    "unet/model.safetensors": b"other" * 100,
    "unet/config.json": b"{}",
    INDEX: b'{"weight_map": {"layer": "model-1-of-1.safetensors"}}',  # of the same weights once more
    "model-1-of-1.safetensors": b"shard" * 100,
    "training_args.bin": b"pickle",
    ".gitattributes": b"*.safetensors filter=lfs",
}


@pytest.fixture
def commit(hub: Hub, tiny_files: dict[str, bytes]) -> str:
    """The published model's only commit."""
    return hub.commit(MODEL, tiny_files)


@pytest.fixture(params=["unreachable", "HF_HUB_OFFLINE"])
def cut(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Cuts the network, in each of two ways."""

    def cut() -> None:
        hub.stop()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "HF_HUB_OFFLINE")

    return cut


def weights(size: int, seed: int = 1) -> bytes:
    """Bytes that stand for weights where none are loaded."""
    return hashlib.shake_256(bytes([seed])).digest(size)


def repository() -> Path:
    """The model's folder in the cache."""
    return Path(constants.HF_HUB_CACHE, "models--tiny--captioner")


def digests() -> set[str]:
    """Of all that the model's folder holds, as the Hub names them."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in repository().rglob("*") if path.is_file()}


# Names.

IDS = st.from_regex(r"([A-Za-z0-9_]{1,9}/)?[A-Za-z0-9][A-Za-z0-9_]{0,9}([.-][A-Za-z0-9_]{1,5}){0,2}", fullmatch=True)
REVISIONS = st.from_regex(r"[A-Za-z0-9_@]([A-Za-z0-9_-]{0,8}/[A-Za-z0-9_]{1,8}){0,2}", fullmatch=True)


@given(IDS.filter(lambda text: not text.endswith(".git")), st.none() | REVISIONS)
def test_a_name_and_a_revision_come_back_as_they_went_together(model: str, revision: str | None) -> None:
    if names.local_folder(model):
        return
    assert names.parse(model if revision is None else f"{model}@{revision}") == (model, revision)


@given(st.text() | st.text("a/.@-~ \\\n:", max_size=12))
def test_any_text_is_a_name_or_refused_in_words_and_no_revision_leads_out_of_the_cache(text: str) -> None:
    try:
        model, revision = names.parse(text)
    except ModelMissing:
        return
    if names.local_folder(text):
        assert (model, revision) == (text, None)
        return
    refs = Path("/cache/refs")
    assert revision is None or refs in Path(refs, revision).resolve().parents
    assert text == model if revision is None else text == f"{model}@{revision}"


@pytest.mark.parametrize(
    "text",
    ["", "@main", "a/b/c", "a b", "tiny--captioner", "tiny/captioner.git", "https://huggingface.co/tiny/a", "a" * 5000]
    + [f"tiny/a@{bad}" for bad in ("", "../../etc", "-f", "a..b", "a b", "main@{1}", "a" * 300, "/a", "a.lock", "é\n")],
)  # fmt: skip
def test_what_can_be_no_name_is_refused_in_words(text: str) -> None:
    with pytest.raises(ModelMissing) as refused:
        names.parse(text)
    model, _, revision = text.partition("@")
    assert repr(revision if model == "tiny/a" else model) in str(refused.value)


def test_a_folder_is_itself_with_any_at_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "team@work" / "model@v2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert names.parse(str(folder)) == (str(folder), None)
    assert names.find(*names.parse(str(folder))).folder == folder
    monkeypatch.chdir(folder.parent)
    assert names.parse("model@v2") == ("model@v2", None)


def test_a_machine_without_huggingface_hub_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(StartupRefused, match=r"pip install 'captioner\[export\]'"):
        names.parse(MODEL)
    assert names.parse(EMBEDDED) == (EMBEDDED, None)


@pytest.mark.parametrize("model", [EMBEDDED, str(EMBEDDED_FOLDER)])
def test_what_is_on_this_disk_is_found_without_a_hub_and_has_no_revisions(hub: Hub, model: str) -> None:
    assert names.find(*names.parse(model)).folder.resolve() == EMBEDDED_FOLDER.resolve()
    with pytest.raises(ModelMissing, match="'main'"):
        names.find(*names.parse(f"{model}@main"))
    with pytest.raises(ModelMissing, match="no branches"):
        names.latest_commit(model, "main")
    assert hub.asked == []


# What is brought.


def test_a_model_of_the_hub_is_found_and_can_be_loaded(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    found = names.find(MODEL)
    assert (found.name, found.revision) == (MODEL, commit)
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == tiny_files
    assert family("vision-encoder-decoder").load(found.folder).image.width == 32


def test_the_record_keeps_the_commit_and_what_the_hub_says_of_every_file(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    pull(MODEL)
    record = json.loads((repository() / "captioner" / f"{commit}.json").read_text())
    assert (record["model"], record["commit"]) == (MODEL, commit)
    assert record["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name == SINGLE
        else {"size": len(data), "git_sha1": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        for name, data in tiny_files.items()
    }


def test_huggingface_hub_itself_takes_the_cache_for_its_own(hub: Hub, commit: str) -> None:
    folder = pull(MODEL).folder
    (seen,) = huggingface_hub.scan_cache_dir().repos
    assert huggingface_hub.scan_cache_dir().warnings == []
    assert (seen.repo_id, [revision.refs for revision in seen.revisions]) == (MODEL, [frozenset({"main"})])
    hub.stop()
    assert huggingface_hub.snapshot_download(MODEL, local_files_only=True) == str(folder)


def test_what_huggingface_hub_has_downloaded_is_checked_and_not_downloaded_again(hub: Hub, commit: str) -> None:
    huggingface_hub.snapshot_download(MODEL)
    (repository() / "snapshots" / commit / CONFIG).unlink()
    hub.asked.clear()
    pull(MODEL)
    assert [asked.path.rpartition("/")[2] for asked in hub.asked] == ["main"], "a blob that is there was asked for"


def test_only_what_transformers_loads_is_asked_for_and_never_a_pickle_or_code(
    hub: Hub, tiny_files: dict[str, bytes]
) -> None:
    config = json.loads(tiny_files[CONFIG]) | {"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}
    hub.commit(MODEL, tiny_files | NOT_FOR_US | {CONFIG: json.dumps(config).encode()})
    snapshot = pull(MODEL)
    assert set(snapshot.files) == {path.name for path in snapshot.folder.iterdir()} == set(tiny_files)
    assert {asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent} == {*tiny_files, "main"}
    assert not any(asked.path.endswith(name) for asked in hub.asked for name in NOT_FOR_US)


def sharded(tiny_files: dict[str, bytes], *shards: str) -> dict[str, bytes]:
    """The model with its weights in shards, of which the index names the given ones."""
    files = {name: data for name, data in tiny_files.items() if name != SINGLE}
    files |= {f"model-{number}-of-3.safetensors": weights(1000, number) for number in (1, 2, 3)}
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": {f"layer.{name}": name for name in shards}}).encode()
    return files


def test_of_shards_those_are_brought_that_the_index_names(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, sharded(tiny_files, "model-1-of-3.safetensors", "model-3-of-3.safetensors"))
    files = set(pull(MODEL).files)
    assert {name for name in files if "model-" in name} == {"model-1-of-3.safetensors", "model-3-of-3.safetensors"}
    assert INDEX in files


def test_a_shard_that_the_repository_does_not_hold_is_named(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, sharded(tiny_files, "model-1-of-3.safetensors", "../../model-9.safetensors"))
    with pytest.raises(ArtefactBroken, match=r"\.\./\.\./model-9\.safetensors"):
        pull(MODEL)


@pytest.mark.parametrize("index", [b"[1]", b"{", b'{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused_in_words(hub: Hub, tiny_files: dict[str, bytes], index: bytes) -> None:
    hub.commit(MODEL, sharded(tiny_files) | {INDEX: index})
    with pytest.raises(ArtefactBroken, match=INDEX):
        pull(MODEL)


@pytest.mark.parametrize(
    ("removed", "added", "sentence"),
    [
        (SINGLE, {"pytorch_model.bin": b"pickle" * 1000}, r"only as pytorch_model\.bin: pickles"),
        (SINGLE, {"model.fp16.safetensors": b"half" * 1000}, r"no model\.safetensors .*model\.fp16\.safetensors"),
        (SINGLE, {}, r"no model\.safetensors"),
        (CONFIG, {}, r"no config\.json"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_anything_is_downloaded(
    hub: Hub, tiny_files: dict[str, bytes], removed: str, added: dict[str, bytes], sentence: str
) -> None:
    hub.commit(MODEL, {name: data for name, data in tiny_files.items() if name != removed} | added)
    with pytest.raises(ModelUnsupported, match=sentence):
        pull(MODEL)
    assert [asked.path for asked in hub.asked if "resolve" in asked.path] == []
    assert not repository().exists()


def test_a_type_that_no_family_serves_is_refused_before_its_weights_are_downloaded(
    hub: Hub, tiny_files: dict[str, bytes]
) -> None:
    config = {"model_type": "florence9", "auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}
    hub.commit(MODEL, tiny_files | NOT_FOR_US | {CONFIG: json.dumps(config).encode()})
    with pytest.raises(ModelUnsupported, match=r"'florence9'.*vision-encoder-decoder"):
        pull(MODEL)
    assert [asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent] == ["main", CONFIG]
    assert huggingface_hub.scan_cache_dir().warnings == []


# Every byte is checked.


def test_a_flipped_bit_in_any_file_of_the_cache_is_found_and_named(
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


def test_a_wrong_byte_of_any_file_on_its_way_is_found_and_named_and_stays_nowhere(
    hub: Hub, tiny_files: dict[str, bytes]
) -> None:
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
        }, "more is there than right files and the lock"
        shutil.rmtree(repository())

    flip()


def test_a_wrong_byte_leaves_the_commit_that_was_there_and_the_next_try_brings_the_new_one(
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
        assert names.find(MODEL).revision == commit, "the branch was moved to a commit that is not here"
    assert names.find(MODEL).revision == new
    assert old.faults() == {}


@pytest.mark.parametrize("harm", ["altered", "cut short", "removed"])
def test_a_file_that_the_cache_has_lost_is_brought_again_and_no_other(
    hub: Hub, commit: str, tiny_files: dict[str, bytes], harm: str
) -> None:
    path = (pull(MODEL).folder / SINGLE).resolve()
    right = path.read_bytes()
    path.unlink() if harm == "removed" else path.write_bytes(right[:-1] + bytes(harm == "altered"))
    hub.asked.clear()
    assert (pull(MODEL).folder / SINGLE).read_bytes() == right
    assert [asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent] == ["main", SINGLE]


def test_an_altered_file_does_not_stay_where_no_other_can_be_had(hub: Hub, commit: str) -> None:
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


# What the Hub answers.


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_gated_model_says_to_accept_its_terms(
    hub: Hub, commit: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close_to(MODEL, "gated", "hf_right")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessDenied, match=f"accept its terms at {hub.address}/{MODEL}, then run `hf auth login`"):
        pull(MODEL)


@pytest.mark.parametrize("how", ["gated", "private"])
@pytest.mark.parametrize("place", ["HF_TOKEN", "hf auth login"])
def test_the_standard_token_opens_a_model_and_is_not_shown_to_the_cdn(
    hub: Hub, commit: str, how: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close_to(MODEL, "gated" if how == "gated" else "private", "hf_right")
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_right")
    else:
        hub.home.mkdir(parents=True, exist_ok=True)
        (hub.home / "token").write_text("hf_right")
    assert pull(MODEL).faults() == {}
    assert {asked.token for asked in hub.asked if asked.on_cdn} == {None}
    assert {asked.token for asked in hub.asked if "/resolve/" in asked.path} == {"hf_right"}


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        ("tiny/nothing", "main", "there is no model 'tiny/nothing' at http.*private.*hf auth login"),
        (MODEL, "nothing", f"{MODEL} has no branch, tag or commit 'nothing' at http"),
        (MODEL, "0" * 40, "has no branch, tag or commit '0000"),
    ],
)
@pytest.mark.parametrize("ask", [pull, names.find, names.latest_commit])
def test_a_model_that_is_not_there_is_told_from_a_revision_that_is_not(
    hub: Hub, commit: str, ask: object, model: str, revision: str, sentence: str
) -> None:
    with pytest.raises(ModelMissing, match=sentence):
        ask(model, revision)  # type: ignore[operator]


@pytest.mark.parametrize("where", ["revision/main", CONFIG, SINGLE])
@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "reset"])
def test_a_busy_hub_and_a_cut_connection_are_asked_again(hub: Hub, commit: str, fault: Fault, where: str) -> None:
    hub.fault(where, fault, times=2)
    assert pull(MODEL).faults() == {}


@pytest.mark.parametrize("where", ["revision/main", SINGLE])
def test_a_hub_that_stays_busy_is_one_sentence(hub: Hub, commit: str, where: str) -> None:
    hub.fault(where, 503, times=99)
    with pytest.raises(HubUnreachable, match=f"{hub.address} answers 503 for (model.safetensors of )?{MODEL}"):
        pull(MODEL)
    assert len([asked for asked in hub.asked if asked.status == 503]) == len(api.WAITS_S) + 1


def test_a_hub_that_asks_for_much_patience_is_not_waited_for(hub: Hub, commit: str) -> None:
    hub.fault("revision/main", 429, times=99, retry_after_s=3600)
    with pytest.raises(HubUnreachable, match=r"429 .* asks for 3600 s of patience"):
        pull(MODEL)
    assert len([asked for asked in hub.asked if asked.path.endswith("main")]) == 1


def test_the_hubs_own_wait_is_heeded(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("captioner.hub.api.time.sleep", waited.append)
    hub.fault("revision/main", 429, retry_after_s=17)
    pull(MODEL)
    assert waited == [17]


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, tiny_files: dict[str, bytes], fault: Fault) -> None:
    size = 2_000_000
    hub.commit(MODEL, tiny_files | {SINGLE: weights(size)})
    hub.fault(SINGLE, fault, at=1_500_000)
    pull(MODEL)
    first, second = hub.bodies(SINGLE)
    assert first.range is None
    assert second.range is not None and 0 < int(second.range.strip("bytes=-")) <= 1_500_000
    assert hub.sent(SINGLE) < 2 * size


def test_a_run_that_failed_is_gone_on_with_by_the_next(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    size = 2_000_000
    hub.commit(MODEL, tiny_files | {SINGLE: weights(size)})
    hub.fault(SINGLE, "cut", at=1_500_000)
    hub.fault(SINGLE, 503, times=4)
    with pytest.raises(HubUnreachable, match="503"):
        pull(MODEL)
    said: list[str] = []
    pull(MODEL, say=said.append)
    assert hub.bodies(SINGLE)[-1].range is not None
    assert hub.sent(SINGLE) < 1.3 * size
    assert any(f"{SINGLE}, 2.0 MB, from 1." in line for line in said)
    assert not (repository() / "captioner" / "parts").exists()


def test_a_part_that_was_harmed_is_found_thrown_away_and_brought_anew(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    part = repository() / "captioner" / "parts" / hashlib.sha256(tiny_files[SINGLE]).hexdigest()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 1000)
    with pytest.raises(ArtefactBroken, match=SINGLE):
        pull(MODEL)
    part.write_bytes(b"\0" * (len(tiny_files[SINGLE]) + 1))
    assert pull(MODEL).faults() == {}


@pytest.mark.parametrize("where", ["revision/main", SINGLE])
def test_silence_ends_in_a_sentence(hub: Hub, commit: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fault(where, "silent", times=99)
    with pytest.raises(HubUnreachable, match=r"nothing came for 0\.2 s, which HF_HUB_DOWNLOAD_TIMEOUT sets"):
        pull(MODEL)


def test_a_slow_connection_is_not_a_dead_one(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)  # the file takes 0.8 s
    hub.fault(SINGLE, "slow")
    assert pull(MODEL).faults() == {}
    assert len(hub.bodies(SINGLE)) == 1


@pytest.mark.parametrize("sha", ["../../../etc", None, "A" * 40])
def test_an_answer_that_is_no_hubs_is_refused(
    hub: Hub, commit: str, sha: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_ask", lambda *_, **__: SimpleNamespace(sha=sha, siblings=()))
    for ask in (pull, names.latest_commit):
        with pytest.raises(HubUnreachable, match=f"gives {sha!r} for a commit"):
            ask(MODEL, "main")


def test_a_page_in_place_of_an_answer_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<h1>Hello</h1")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(HubUnreachable, match=MODEL):
            names.latest_commit(MODEL, "main")


# Two at once, and disks.


def test_two_that_pull_the_same_at_once_download_it_once(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    hub.fault(SINGLE, "slow")
    pulled: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: pulled.append(pull(MODEL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [snapshot.faults() for snapshot in pulled] == [{}, {}]
    assert hub.sent(SINGLE) == len(tiny_files[SINGLE])


def test_a_disk_that_is_too_small_is_told_before_the_weights_are_downloaded(
    hub: Hub, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(MODEL, tiny_files | {SINGLE: weights(5_000_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(CacheUnwritable, match=r"needs 5\.0 MB more in .*hub, where 1\.0 MB are free"):
        pull(MODEL)
    assert hub.sent(SINGLE) == 0


def test_a_disk_that_fills_up_meanwhile_is_told_with_the_need(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    part = repository() / "captioner" / "parts" / hashlib.sha256(tiny_files[SINGLE]).hexdigest()
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")  # where the kernel itself says that there is no space
    with pytest.raises(CacheUnwritable, match=r"cannot take the 0\.3 MB of .*: No space left on device"):
        pull(MODEL)


def test_a_cache_that_is_read_only_serves_what_it_holds(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(MODEL)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("WeakFileLock", "_write"):
        monkeypatch.setattr(f"captioner.hub.cache.{name}", refuse)
    assert pull(MODEL).commit == commit


# Without a network.


@pytest.mark.parametrize("revision", [None, "main", "a/branch", "the commit"])
def test_what_was_pulled_is_used_without_a_network_and_its_commit_is_told(
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
    said = capsys.readouterr().err
    assert said == "" if revision == "the commit" else found.revision in said


def test_a_partial_cache_is_refused_with_what_it_lacks(hub: Hub, cut: Callable[[], None], commit: str) -> None:
    folder = pull(MODEL).folder
    for name in (SINGLE, "tokenizer.json"):
        (folder / name).resolve().unlink()
    cut()
    for revision in ("main", commit):
        with pytest.raises(HubUnreachable, match=rf"lacks {SINGLE}, tokenizer\.json$"):
            names.find(MODEL, revision)


def test_what_was_never_pulled_is_refused_without_a_network(hub: Hub, cut: Callable[[], None], commit: str) -> None:
    cut()
    with pytest.raises(HubUnreachable, match=f"holds nothing of {MODEL} at main") as refused:
        names.find(MODEL)
    assert ("HF_HUB_OFFLINE is set" in str(refused.value)) == constants.HF_HUB_OFFLINE
    with pytest.raises(HubUnreachable):
        names.latest_commit(MODEL, "main")


def test_what_huggingface_hub_has_downloaded_is_used_without_a_network_if_it_is_right(
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


def test_a_commit_that_is_here_whole_needs_no_request(hub: Hub, commit: str) -> None:
    pull(MODEL, commit)
    hub.asked.clear()
    assert names.find(MODEL, commit).revision == commit
    assert hub.asked == []


def test_hf_hub_cache_is_where_it_goes(hub: Hub, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert tmp_path / "elsewhere" in names.find(MODEL).folder.parents


# A branch.


def test_the_latest_commit_of_a_branch_is_one_small_request(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    assert names.latest_commit(MODEL, "main") == commit
    new = hub.commit(MODEL, tiny_files | {"README.md": b"new"})
    hub.asked.clear()
    assert names.latest_commit(MODEL, "main") == new
    hub.move(MODEL, "main", commit)
    assert names.latest_commit(MODEL, "main") == commit
    assert [asked.path for asked in hub.asked] == [f"/api/models/{MODEL}/revision/main"] * 2
    assert all(asked.sent < 200 for asked in hub.asked)
