"""A commit of a model as it lies in huggingface_hub's cache, and the record of what the Hub says its files are.

The record and what is downloaded in part lie in the model's own folder of the cache, beside huggingface_hub's `blobs`,
`refs` and `snapshots`, where its own tools leave them alone: they are copied with the model and deleted with it.
Nothing here knows the network.
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
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, if not marked so

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file as the Hub describes it, which is also the name of its blob in the cache."""

    size: int  # bytes
    digest: str  # hex: the sha256 of what the Hub keeps in LFS, git's sha1 of anything else

    @property
    def kind(self) -> str:
        """How `digest` is made; its key in the record."""
        return "sha256" if len(self.digest) == 64 else "git_sha1"

    def is_at(self, path: Path) -> bool:
        """Whether all of it lies there, byte for byte."""
        return path.is_file() and path.stat().st_size == self.size and self.digest_of(path) == self.digest

    def digest_of(self, path: Path) -> str:
        """The digest of what lies at `path`, made as this file's is."""
        if self.kind == "sha256":
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A commit and those of its files that are meant, by name; all are at the root of the repository."""

    model: str
    commit: str
    files: dict[str, File]

    def __str__(self) -> str:
        return f"{self.model}@{self.commit[:12]}"

    @classmethod
    def recorded(cls, model: str, commit: str) -> Snapshot | None:
        """What was pulled, as the Hub described it then; None where there is no record that can be read."""
        try:
            record = json.loads(_record(model, commit).read_text("utf-8"))
            files = {
                name: File(int(entry["size"]), str(entry.get("sha256") or entry["git_sha1"]))
                for name, entry in record["files"].items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return cls(model, commit, files)

    @classmethod
    def lying(cls, model: str, commit: str) -> Snapshot:
        """What something else has pulled: huggingface_hub's blobs are named by the digests that the Hub gave them."""
        files = {}
        for path in sorted((_store(model) / "snapshots" / commit).glob("*")):
            digest = path.readlink().name if path.is_symlink() else ""
            if path.is_file() and DIGEST.fullmatch(digest):
                files[path.name] = File(path.stat().st_size, digest)
        return cls(model, commit, files)

    @property
    def folder(self) -> Path:
        """Where it is loaded from."""
        return _store(self.model) / "snapshots" / self.commit

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())

    def part(self, name: str) -> Path:
        """Where the file is downloaded to, and where a later run finds what has come of it."""
        return _own(self.model) / "parts" / self.files[name].digest

    def found(self, name: str) -> Path | None:
        """Where the file lies whole: in the snapshot, as another commit's or as just downloaded."""
        places = self.folder / name, self._blob(name), self.part(name)
        return next((path for path in places if self.files[name].is_at(path)), None)

    def faults(self) -> dict[str, str]:
        """`missing` or `altered` for each file that the snapshot does not hold as the Hub describes it."""
        return {
            name: "altered" if (self.folder / name).is_file() else "missing"
            for name, file in self.files.items()
            if not file.is_at(self.folder / name)
        }

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps another process from pulling the same model; a cache that is read-only needs no lock."""
        with ExitStack() as stack:
            with suppress(OSError):
                _own(self.model).mkdir(parents=True, exist_ok=True)
                self.folder.parent.mkdir(exist_ok=True)  # without it `hf cache` takes the model's folder for broken
                stack.enter_context(WeakFileLock(_own(self.model) / "lock"))
            yield

    def discard(self, name: str) -> None:
        """Takes an altered file out of the cache, for every commit that shares it."""
        pointer, blob = self.folder / name, self._blob(name)
        for path in (pointer.resolve(), pointer, blob):  # a blob may itself be a link into huggingface_hub's store
            path.unlink(missing_ok=True)

    def put(self, name: str, found: Path) -> None:
        """Makes a file that lies whole at `found` part of the snapshot."""
        pointer, blob = self.folder / name, self._blob(name)
        for path in (pointer, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        if found == self.part(name):
            found.replace(blob)
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))

    def keep(self, revision: str) -> None:
        """Records it, and that it is what `revision` means from now on."""
        files = {name: {"size": file.size, file.kind: file.digest} for name, file in sorted(self.files.items())}
        record = {"model": self.model, "commit": self.commit, "files": files}
        with suppress(OSError):  # a cache may be read-only: what it holds is checked all the same
            _write(_record(self.model, self.commit), json.dumps(record, indent=1) + "\n")
            if revision != self.commit:
                _write(_ref(self.model, revision), self.commit)
            shutil.rmtree(_own(self.model) / "parts", ignore_errors=True)

    def _blob(self, name: str) -> Path:
        return _store(self.model) / "blobs" / self.files[name].digest


def resolved(model: str, revision: str) -> str | None:
    """The commit that a branch or tag was when it was last asked for, by huggingface_hub's own note of it."""
    if COMMIT.fullmatch(revision):
        return revision
    try:
        commit = _ref(model, revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _store(model: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))


def _own(model: str) -> Path:
    return _store(model) / "captioner"


def _record(model: str, commit: str) -> Path:
    return _own(model) / f"{commit}.json"


def _ref(model: str, revision: str) -> Path:
    return _store(model) / "refs" / revision


def _write(path: Path, text: str) -> None:
    """At once or not at all; nothing where it says that already."""
    if path.is_file() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, "utf-8")
    new.replace(path)
