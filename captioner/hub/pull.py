"""Pull a model of the Hub into huggingface_hub's cache and verify every byte; offline, verify what the cache holds.

Only data is downloaded: safetensors, JSON and tokenizers. Pickles and code are never requested.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from captioner.errors import ArtefactBroken, CacheUnwritable, HubUnreachable, ModelUnsupported
from captioner.families import FAMILIES, family
from captioner.hub import api
from captioner.hub.cache import COMMIT, File, Snapshot, cached_commit

DEFAULT_BRANCH = "main"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")  # beside the weights
WEIGHTS = ("*.safetensors",)
OTHER_INDEXES = "*.index.json"  # of weights in other formats and precisions
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

Log = Callable[[str], None]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pull(model: str, revision: str | None = None, log: Log = _log, *, weights: bool = True) -> Snapshot:
    """Return the verified files of a Hub id at a branch, tag or commit; download those that the cache lacks.

    When the Hub cannot be reached, the cached files are returned. `weights`: False for the small files beside the
    weights alone; the cache then does not count as holding the model. Raises ModelMissing, ModelUnsupported,
    AccessDenied, HubUnreachable, ArtefactBroken or CacheUnwritable; other commits in the cache are then unchanged.
    """
    revision = revision or DEFAULT_BRANCH
    known = Snapshot.from_record(model, revision) if COMMIT.fullmatch(revision) else None
    wanted = _everything if weights else _without_weights
    if known and not wanted(known).faults():
        return wanted(known)  # a commit does not change
    try:
        commit, files = api.listing(model, revision)
    except HubUnreachable as error:
        return _cached(model, revision, error, log, wanted)
    snapshot = Snapshot(model, commit, files)
    _check_formats(snapshot)
    try:
        with snapshot.lock():
            snapshot = wanted(_select(snapshot, log))
            _download_missing(snapshot, log)
            if weights:
                snapshot.write_record(revision)
    except OSError as error:
        raise CacheUnwritable(
            f"{constants.HF_HUB_CACHE} cannot hold the {_size(snapshot.size)} of {snapshot}: {error.strerror}; "
            "free some space, or set HF_HOME to another disk; the same command resumes"
        ) from error
    return snapshot


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weights' files that transformers loads from a model folder, whether it holds them or not.

    Raises ArtefactBroken for an index that does not name them.
    """
    index = folder / INDEX
    return [SINGLE] if (folder / SINGLE).exists() or not index.is_file() else _shards(folder, index)


def _everything(snapshot: Snapshot) -> Snapshot:
    return snapshot


def _without_weights(snapshot: Snapshot) -> Snapshot:
    small = {name: file for name, file in snapshot.files.items() if not _matches(name, WEIGHTS)}
    return replace(snapshot, files=small)


def _cached(
    model: str, revision: str, error: HubUnreachable, log: Log, wanted: Callable[[Snapshot], Snapshot]
) -> Snapshot:
    """Return the cached files after `error`. Raises it, with what is missing, unless the cache holds all of them."""
    commit = cached_commit(model, revision)
    snapshot = commit and (Snapshot.from_record(model, commit) or _downloaded_by_other_tools(model, commit))
    if not snapshot:
        raise HubUnreachable(f"{error}; {constants.HF_HUB_CACHE} does not hold {model} at {revision}") from error
    snapshot = wanted(snapshot)
    faults = snapshot.faults()
    if missing := sorted(name for name, fault in faults.items() if fault == "missing"):
        raise HubUnreachable(f"{error}; {snapshot.folder} lacks {', '.join(missing)}") from error
    if faults:
        raise ArtefactBroken(f"{snapshot.folder}: digests differ from the Hub's: {', '.join(faults)}; {error}")
    log(f"{error}; {model} at {revision} is {snapshot.commit} in the cache")
    return snapshot


def _downloaded_by_other_tools(model: str, commit: str) -> Snapshot | None:
    snapshot = Snapshot.from_blobs(model, commit)
    if not snapshot.files:
        return None
    needed = _needed(snapshot, lambda name: snapshot.folder / name)
    return replace(snapshot, files={name: snapshot.files.get(name, File(0, "")) for name in needed})


def _select(listed: Snapshot, log: Log) -> Snapshot:
    """Return the snapshot of the needed files among all that the Hub lists."""
    needed = _needed(listed, lambda name: _download(listed, name, log))
    if absent := [name for name in needed if name not in listed.files]:
        raise ArtefactBroken(f"{INDEX} of {listed} names {', '.join(absent)}, which the repository does not hold")
    return replace(listed, files={name: listed.files[name] for name in needed})


def _download_missing(snapshot: Snapshot, log: Log) -> None:
    """Download the files that the cache lacks. The snapshot changes only when all of them are verified."""
    faults = snapshot.faults()
    for name in (name for name, fault in faults.items() if fault == "altered"):
        log(f"{snapshot.folder / name} does not have the Hub's digest any more; it is downloaded again")
        snapshot.discard(name)
    cached = {name: snapshot.locate(name) for name in faults}
    if lacking := [name for name, path in cached.items() if path is None]:
        _check_family(snapshot, _download(snapshot, CONFIG, log))
        _check_disk(snapshot, lacking)
    verified = {name: path or _download(snapshot, name, log) for name, path in cached.items()}
    for name, path in verified.items():
        snapshot.add(name, path)


def _download(snapshot: Snapshot, name: str, log: Log) -> Path:
    """Return a path of the verified file; download it if the cache lacks it."""
    if path := snapshot.locate(name):
        return path
    file, part = snapshot.files[name], snapshot.part(name)
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    if done >= file.size:  # complete, but its digest is wrong
        part.unlink(missing_ok=True)
        done = 0
    if not sys.stderr.isatty():  # on a terminal, huggingface_hub shows a progress bar
        log(f"{name}, {_size(file.size)}" + (f", resumed at {_size(done)}" if done else ""))
    api.fetch(snapshot.model, snapshot.commit, name, file.size, part)
    if not file.is_at(part):
        digest = file.digest_of(part)
        part.unlink()
        raise ArtefactBroken(
            f"{name} of {snapshot} arrived with {file.kind} {digest}; the Hub says {file.digest}. The download was "
            "deleted, nothing else changed; the same command tries again"
        )
    return part


def _needed(snapshot: Snapshot, fetch: Callable[[str], Path]) -> list[str]:
    """Return the names of the files that transformers loads; of several forms of the weights, the one it prefers."""
    small = [name for name in snapshot.files if _matches(name, PATTERNS) and not _matches(name, (OTHER_INDEXES,))]
    weights = [SINGLE]
    if SINGLE not in snapshot.files and INDEX in snapshot.files:
        weights = [INDEX, *_shards(snapshot, fetch(INDEX))]
    return list(dict.fromkeys([CONFIG, *small, *weights]))


def _shards(model: Snapshot | Path, index: Path) -> list[str]:
    try:
        return sorted(set(_read(model, INDEX, index)["weight_map"].values()))
    except (LookupError, AttributeError, TypeError) as error:
        raise ArtefactBroken(f"{INDEX} of {model} does not name the shards") from error


def _read(model: Snapshot | Path, name: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtefactBroken(f"{name} of {model} is not a JSON object: {error}") from error


def _check_formats(listed: Snapshot) -> None:
    """Raise ModelUnsupported for a repository without loadable weights, before anything is downloaded."""
    if CONFIG not in listed.files:
        raise ModelUnsupported(f"{listed} has no {CONFIG}, so transformers cannot load it")
    if SINGLE in listed.files or INDEX in listed.files:
        return
    pickles = [name for name in listed.files if _matches(name, PICKLES)]
    if pickles:
        raise ModelUnsupported(
            f"{listed} has its weights only as {', '.join(pickles)}: pickles can run code when they are loaded, so "
            "they are not downloaded; its authors can add safetensors"
        )
    others = [name for name in listed.files if _matches(name, WEIGHTS)]
    raise ModelUnsupported(f"{listed} has no {SINGLE} and no {INDEX}" + (f" but {', '.join(others)}" * bool(others)))


def _check_family(snapshot: Snapshot, config: Path) -> None:
    """Raise ModelUnsupported for a model_type without a family; code in the model's repository is ignored."""
    model_type = str(_read(snapshot, CONFIG, config).get("model_type"))
    if model_type not in FAMILIES:  # a known family is not imported here: it needs torch, and takes seconds
        family(model_type)


def _check_disk(snapshot: Snapshot, lacking: list[str]) -> None:
    parts = [snapshot.part(name) for name in lacking]
    done = sum(part.stat().st_size for part in parts if part.exists())
    need = sum(snapshot.files[name].size for name in lacking) - done
    free = shutil.disk_usage(snapshot.folder.parent).free
    if need > free:
        raise CacheUnwritable(
            f"{snapshot} needs {_size(need)} more in {constants.HF_HUB_CACHE}, where {_size(free)} are free; "
            "free some space, or set HF_HOME to another disk"
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
