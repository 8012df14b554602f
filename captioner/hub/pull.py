"""A model of the Hub brought into huggingface_hub's cache and checked byte for byte, or what the cache holds of it.

Data alone is brought: safetensors, JSON and tokenizers. No pickle and no code is ever asked for.
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
from captioner.hub import api
from captioner.hub.cache import COMMIT, File, Snapshot, resolved

DEFAULT_BRANCH = "main"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")  # beside the weights
OTHER_INDEXES = "*.index.json"  # of weights in other formats and precisions
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pull(model: str, revision: str | None = None, say: Say = _say) -> Snapshot:
    """The files of a Hub id at a branch, tag or commit, every byte as the Hub describes it.

    Where the Hub cannot be asked, what the cache holds. Raises ModelMissing, ModelUnsupported, AccessDenied,
    HubUnreachable, ArtefactBroken or CacheUnwritable; whatever else the cache holds is then as it was.
    """
    revision = revision or DEFAULT_BRANCH
    known = Snapshot.recorded(model, revision) if COMMIT.fullmatch(revision) else None
    if known and not known.faults():
        return known  # a commit does not change
    try:
        commit, files = api.listing(model, revision)
    except HubUnreachable as error:
        return _cached(model, revision, error, say)
    snapshot = Snapshot(model, commit, files)
    _check_formats(snapshot)
    try:
        with snapshot.lock():
            snapshot = _chosen(snapshot, say)
            _bring_all(snapshot, say)
            snapshot.keep(revision)
    except OSError as error:
        raise CacheUnwritable(
            f"{constants.HF_HUB_CACHE} cannot take the {_size(snapshot.size)} of {snapshot}: {error.strerror}; "
            "make room, or set HF_HOME to another disk; the same command goes on where it was"
        ) from error
    return snapshot


def _cached(model: str, revision: str, error: HubUnreachable, say: Say) -> Snapshot:
    """What the cache holds, whole, of what cannot be asked for."""
    commit = resolved(model, revision)
    snapshot = commit and (Snapshot.recorded(model, commit) or _pulled_by_others(model, commit))
    if not snapshot:
        raise HubUnreachable(f"{error}; {constants.HF_HUB_CACHE} holds nothing of {model} at {revision}") from error
    faults = snapshot.faults()
    if missing := sorted(name for name, fault in faults.items() if fault == "missing"):
        raise HubUnreachable(f"{error}; {snapshot.folder} lacks {', '.join(missing)}") from error
    if faults:
        raise ArtefactBroken(f"{snapshot.folder}: not as the Hub describes it: {', '.join(faults)}; {error}")
    say(f"{error}; {model} at {revision} is {snapshot.commit} in the cache")
    return snapshot


def _pulled_by_others(model: str, commit: str) -> Snapshot | None:
    lying = Snapshot.lying(model, commit)
    needed = _needed(lying, lambda name: lying.folder / name)
    return replace(lying, files={name: lying.files.get(name, File(0, "")) for name in needed}) if lying.files else None


def _chosen(listed: Snapshot, say: Say) -> Snapshot:
    """Of all that the Hub lists what is needed."""
    needed = _needed(listed, lambda name: _bring(listed, name, say))
    if absent := [name for name in needed if name not in listed.files]:
        raise ArtefactBroken(f"{INDEX} of {listed} names {', '.join(absent)}, which the repository does not hold")
    return replace(listed, files={name: listed.files[name] for name in needed})


def _bring_all(snapshot: Snapshot, say: Say) -> None:
    """Downloads what the cache lacks; the snapshot is touched when all of it is here and right."""
    faults = snapshot.faults()
    for name in (name for name, fault in faults.items() if fault == "altered"):
        say(f"{snapshot.folder / name} is not as the Hub describes it any more and is fetched anew")
        snapshot.discard(name)
    found = {name: snapshot.found(name) for name in faults}
    if lacking := [name for name, path in found.items() if path is None]:
        _check_family(snapshot, _bring(snapshot, CONFIG, say))
        _check_disk(snapshot, lacking)
    brought = {name: path or _bring(snapshot, name, say) for name, path in found.items()}
    for name, path in brought.items():
        snapshot.put(name, path)


def _bring(snapshot: Snapshot, name: str, say: Say) -> Path:
    """Where a file lies whole, after a download if need be."""
    if found := snapshot.found(name):
        return found
    file, part = snapshot.files[name], snapshot.part(name)
    part.parent.mkdir(parents=True, exist_ok=True)
    begun = part.stat().st_size if part.exists() else 0
    if begun >= file.size:  # and wrong
        part.unlink(missing_ok=True)
        begun = 0
    if not sys.stderr.isatty():  # where huggingface_hub draws its bar
        say(f"{name}, {_size(file.size)}" + (f", from {_size(begun)} on" if begun else ""))
    api.fetch(snapshot.model, snapshot.commit, name, file.size, part)
    if not file.is_at(part):
        arrived = file.digest_of(part)
        part.unlink()
        raise ArtefactBroken(
            f"{name} of {snapshot} arrived with {file.kind} {arrived}; the Hub says {file.digest}. It was thrown away "
            "and nothing else was changed; the same command asks for it again"
        )
    return part


def _needed(snapshot: Snapshot, bring: Callable[[str], Path]) -> list[str]:
    """The names of what transformers loads; of weights in several forms the one that it takes."""
    small = [name for name in snapshot.files if _like(name, PATTERNS) and not _like(name, (OTHER_INDEXES,))]
    weights = [SINGLE]
    if SINGLE not in snapshot.files and INDEX in snapshot.files:
        weights = [INDEX, *_shards(snapshot, bring(INDEX))]
    return list(dict.fromkeys([CONFIG, *small, *weights]))


def _shards(snapshot: Snapshot, index: Path) -> list[str]:
    try:
        return sorted(set(_read(snapshot, INDEX, index)["weight_map"].values()))
    except (LookupError, AttributeError, TypeError) as error:
        raise ArtefactBroken(f"{INDEX} of {snapshot} does not say which shards there are") from error


def _read(snapshot: Snapshot, name: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtefactBroken(f"{name} of {snapshot} is no JSON object: {error}") from error


def _check_formats(listed: Snapshot) -> None:
    """ModelUnsupported where nothing is there that can be loaded, before anything is downloaded."""
    if CONFIG not in listed.files:
        raise ModelUnsupported(f"{listed} holds no {CONFIG}, so transformers cannot load it")
    if SINGLE in listed.files or INDEX in listed.files:
        return
    pickles = [name for name in listed.files if _like(name, PICKLES)]
    if pickles:
        raise ModelUnsupported(
            f"{listed} holds its weights only as {', '.join(pickles)}: pickles can run what they hold when they are "
            "opened, so they are not downloaded; its authors can add safetensors"
        )
    others = [name for name in listed.files if _like(name, ("*.safetensors",))]
    raise ModelUnsupported(f"{listed} holds no {SINGLE} and no {INDEX}" + (f" but {', '.join(others)}" * bool(others)))


def _check_family(snapshot: Snapshot, config: Path) -> None:
    """ModelUnsupported for a model that no family here serves, whatever code lies in its repository."""
    try:
        from captioner.families import family
    except ImportError:  # torch is an extra: the export, which has it, will look
        return
    family(str(_read(snapshot, CONFIG, config).get("model_type")))


def _check_disk(snapshot: Snapshot, lacking: list[str]) -> None:
    parts = [snapshot.part(name) for name in lacking]
    begun = sum(part.stat().st_size for part in parts if part.exists())
    need = sum(snapshot.files[name].size for name in lacking) - begun
    free = shutil.disk_usage(snapshot.folder.parent).free
    if need > free:
        raise CacheUnwritable(
            f"{snapshot} needs {_size(need)} more in {constants.HF_HUB_CACHE}, where {_size(free)} are free; "
            "make room, or set HF_HOME to another disk"
        )


def _like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
