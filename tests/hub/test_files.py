"""Which files of a model are pulled, and how the cache holds them."""

from __future__ import annotations

import hashlib
import json

import huggingface_hub
import pytest

from captioner.errors import ArtefactBroken, ModelUnsupported
from captioner.families import family
from captioner.hub import resolve as names
from captioner.hub.pull import INDEX, SINGLE, pull
from tests.support.hub_files import CONFIG, MODEL, repository, sharded
from tests.support.hub_server import Hub

UNNEEDED = {
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
    INDEX: b'{"weight_map": {"layer": "model-1-of-1.safetensors"}}',  # of a second copy of the weights
    "model-1-of-1.safetensors": b"shard" * 100,
    "training_args.bin": b"pickle",
    ".gitattributes": b"*.safetensors filter=lfs",
}


def test_a_model_of_the_hub_is_pulled_and_can_be_loaded(hub: Hub, commit: str, tiny_files: dict[str, bytes]) -> None:
    found = names.find(MODEL)
    assert (found.name, found.revision) == (MODEL, commit)
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == tiny_files
    assert family("vision-encoder-decoder").load(found.folder).image.width == 32


def test_the_record_holds_the_commit_and_the_size_and_digest_of_every_file(
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


def test_huggingface_hub_itself_reads_the_cache(hub: Hub, commit: str) -> None:
    folder = pull(MODEL).folder
    (seen,) = huggingface_hub.scan_cache_dir().repos
    assert huggingface_hub.scan_cache_dir().warnings == []
    assert (seen.repo_id, [revision.refs for revision in seen.revisions]) == (MODEL, [frozenset({"main"})])
    hub.stop()
    assert huggingface_hub.snapshot_download(MODEL, local_files_only=True) == str(folder)


def test_files_that_huggingface_hub_has_downloaded_are_verified_and_not_downloaded_again(hub: Hub, commit: str) -> None:
    huggingface_hub.snapshot_download(MODEL)
    (repository() / "snapshots" / commit / CONFIG).unlink()
    hub.asked.clear()
    pull(MODEL)
    assert [asked.path.rpartition("/")[2] for asked in hub.asked] == ["main"], "a cached blob was requested"


def test_only_files_that_transformers_loads_are_requested_and_no_pickle_or_code(
    hub: Hub, tiny_files: dict[str, bytes]
) -> None:
    config = json.loads(tiny_files[CONFIG]) | {"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}
    hub.commit(MODEL, tiny_files | UNNEEDED | {CONFIG: json.dumps(config).encode()})
    snapshot = pull(MODEL)
    assert set(snapshot.files) == {path.name for path in snapshot.folder.iterdir()} == set(tiny_files)
    assert {asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent} == {*tiny_files, "main"}
    assert not any(asked.path.endswith(name) for asked in hub.asked for name in UNNEEDED)


def test_only_shards_that_the_index_names_are_downloaded(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, sharded(tiny_files, "model-1-of-3.safetensors", "model-3-of-3.safetensors"))
    files = set(pull(MODEL).files)
    assert {name for name in files if "model-" in name} == {"model-1-of-3.safetensors", "model-3-of-3.safetensors"}
    assert INDEX in files


def test_an_error_names_a_shard_that_the_repository_does_not_hold(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    hub.commit(MODEL, sharded(tiny_files, "model-1-of-3.safetensors", "../../model-9.safetensors"))
    with pytest.raises(ArtefactBroken, match=r"\.\./\.\./model-9\.safetensors"):
        pull(MODEL)


@pytest.mark.parametrize("index", [b"[1]", b"{", b'{"weight_map": 3}'])
def test_an_invalid_index_is_refused(hub: Hub, tiny_files: dict[str, bytes], index: bytes) -> None:
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
def test_a_model_that_cannot_be_loaded_is_refused_before_any_download(
    hub: Hub, tiny_files: dict[str, bytes], removed: str, added: dict[str, bytes], sentence: str
) -> None:
    hub.commit(MODEL, {name: data for name, data in tiny_files.items() if name != removed} | added)
    with pytest.raises(ModelUnsupported, match=sentence):
        pull(MODEL)
    assert [asked.path for asked in hub.asked if "resolve" in asked.path] == []
    assert not repository().exists()


def test_a_model_type_without_a_family_is_refused_before_its_weights_are_downloaded(
    hub: Hub, tiny_files: dict[str, bytes]
) -> None:
    config = {"model_type": "florence9", "auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}
    hub.commit(MODEL, tiny_files | UNNEEDED | {CONFIG: json.dumps(config).encode()})
    with pytest.raises(ModelUnsupported, match=r"'florence9'.*vision-encoder-decoder"):
        pull(MODEL)
    assert [asked.path.rpartition("/")[2] for asked in hub.asked if asked.sent] == ["main", CONFIG]
    assert huggingface_hub.scan_cache_dir().warnings == []
