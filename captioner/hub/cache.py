"""A commit of a model in huggingface_hub's cache, and the record of the sizes and digests that the Hub gave.

The record and partial downloads are in the model's own folder of the cache, beside huggingface_hub's `blobs`, `refs`
and `snapshots`. huggingface_hub's tools ignore them there, and copy or delete them with the model. This module makes
no requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but not exported

from captioner.hashing import add_file

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file's size and digest on the Hub. The digest is also the name of its blob in the cache."""

    size: int  # bytes
    digest: str  # hex: sha256 of a file in LFS, git's sha1 of any other

    @property
    def kind(self) -> str:
        """Return the algorithm of `digest`; it is the digest's key in the record."""
        return "sha256" if len(self.digest) == 64 else "git_sha1"

    def is_at(self, path: Path) -> bool:
        """Return whether `path` holds exactly this file."""
        return path.is_file() and path.stat().st_size == self.size and self.digest_of(path) == self.digest

    def digest_of(self, path: Path) -> str:
        """Return the digest of the file at `path`, by this file's algorithm."""
        if self.kind == "sha256":
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        add_file(digest, path)
        return digest.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A commit of a model and a selection of its files by name, all at the repository's root."""

    model: str
    commit: str
    files: dict[str, File]

    def __str__(self) -> str:
        return f"{self.model}@{self.commit[:12]}"

    @classmethod
    def from_record(cls, model: str, commit: str) -> Snapshot | None:
        """Return a commit that was pulled before, with the Hub's digests of that time; None without a valid record."""
        try:
            record = json.loads(_record_path(model, commit).read_text("utf-8"))
            files = {
                name: File(int(entry["size"]), str(entry.get("sha256") or entry["git_sha1"]))
                for name, entry in record["files"].items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return cls(model, commit, files)

    @classmethod
    def from_blobs(cls, model: str, commit: str) -> Snapshot:
        """Return a commit that another tool downloaded: huggingface_hub names each blob by the Hub's digest."""
        files = {}
        for path in sorted((_model_folder(model) / "snapshots" / commit).glob("*")):
            digest = path.readlink().name if path.is_symlink() else ""
            if path.is_file() and DIGEST.fullmatch(digest):
                files[path.name] = File(path.stat().st_size, digest)
        return cls(model, commit, files)

    @property
    def folder(self) -> Path:
        """Return the folder that the model is loaded from."""
        return _model_folder(self.model) / "snapshots" / self.commit

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self.files.values())

    def part(self, name: str) -> Path:
        """Return the path of the file's download. A partial download stays there for a later run."""
        return _own_folder(self.model) / "parts" / self.files[name].digest

    def locate(self, name: str) -> Path | None:
        """Return a path that holds the verified file: in the snapshot, as another commit's blob, or downloaded."""
        places = self.folder / name, self._blob(name), self.part(name)
        return next((path for path in places if self.files[name].is_at(path)), None)

    def faults(self) -> dict[str, str]:
        """Return `missing` or `altered` for each file that the snapshot does not hold with the Hub's digest."""
        return {
            name: "altered" if (self.folder / name).is_file() else "missing"
            for name, file in self.files.items()
            if not file.is_at(self.folder / name)
        }

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from pulling the same model. A read-only cache is not locked."""
        with ExitStack() as stack:
            with suppress(OSError):
                _own_folder(self.model).mkdir(parents=True, exist_ok=True)
                self.folder.parent.mkdir(exist_ok=True)  # without it, `hf cache` reports the model's folder as broken
                stack.enter_context(WeakFileLock(_own_folder(self.model) / "lock"))
            yield

    def discard(self, name: str) -> None:
        """Delete an altered file from the cache, for every commit that shares it."""
        pointer, blob = self.folder / name, self._blob(name)
        for path in (pointer.resolve(), pointer, blob):  # a blob may itself be a link into huggingface_hub's store
            path.unlink(missing_ok=True)

    def add(self, name: str, path: Path) -> None:
        """Make the verified file at `path` part of the snapshot."""
        pointer, blob = self.folder / name, self._blob(name)
        for each in (pointer, blob):
            each.parent.mkdir(parents=True, exist_ok=True)
        if path == self.part(name):
            path.replace(blob)
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))

    def write_record(self, revision: str) -> None:
        """Record the files' digests, and that `revision` points to this commit; delete partial downloads."""
        files = {name: {"size": file.size, file.kind: file.digest} for name, file in sorted(self.files.items())}
        record = {"model": self.model, "commit": self.commit, "files": files}
        with suppress(OSError):  # a read-only cache is still verified and used
            _write(_record_path(self.model, self.commit), json.dumps(record, indent=1) + "\n")
            if revision != self.commit:
                _write(_ref_path(self.model, revision), self.commit)
            shutil.rmtree(_own_folder(self.model) / "parts", ignore_errors=True)

    def _blob(self, name: str) -> Path:
        return _model_folder(self.model) / "blobs" / self.files[name].digest


def cached_commit(model: str, revision: str) -> str | None:
    """Return the commit that a branch or tag pointed to at the last pull, as huggingface_hub's `refs` say."""
    if COMMIT.fullmatch(revision):
        return revision
    try:
        commit = _ref_path(model, revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _model_folder(model: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))


def _own_folder(model: str) -> Path:
    return _model_folder(model) / "captioner"


def _record_path(model: str, commit: str) -> Path:
    return _own_folder(model) / f"{commit}.json"


def _ref_path(model: str, revision: str) -> Path:
    return _model_folder(model) / "refs" / revision


def _write(path: Path, text: str) -> None:
    """Write a file atomically, unless it holds that text already."""
    if path.is_file() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, "utf-8")
    new.replace(path)
