"""A fake Hugging Face Hub: the endpoints that huggingface_hub 2.4 requests, with the real Hub's responses.

Models are bytes at commits. `commit` adds a commit and moves a branch, `fault` injects faults, `asked` records the
requests. Large files are redirected to another origin (the CDN), small ones to another path. No file is in Xet. The
fixture `hub` points this process to the fake; `hub.environment` does the same for a subprocess.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]  # public, if not marked so

from tests.support import tiny
from tests.support.hub_http import PIECE, Asked, Fault, Planned, Reply, Server

LFS = ("*.safetensors", "*.bin", "*.msgpack", "*.h5", "*.onnx")  # as in the Hub's default .gitattributes
CACHED = re.compile(r"/api/resolve-cache/models/(.+)/([0-9a-f]{40})/(.+)")
FOREIGN = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Blob:
    """A file's bytes, and the digests that the Hub gives for them."""

    data: bytes
    in_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Return git's sha1 of what git stores: the bytes, or an LFS pointer to them."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        kept = pointer.encode() if self.in_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept, usedforsecurity=False).hexdigest()

    def about(self, oid: str, sha256: str) -> dict[str, Any]:
        """Return its entry in a listing; two API endpoints name each of the digests differently."""
        lfs = {"lfs": {sha256: self.sha256, "size": len(self.data), "pointerSize": 134}} if self.in_lfs else {}
        return {oid: self.oid, "size": len(self.data), **lfs}


@dataclass
class Repository:
    """A model: its commits, its branches, and the token that gives access."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    closed: Literal["", "gated", "private"] = ""


class Hub:
    """The fake Hub; `home` becomes the HF_HOME of its clients."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.asked: list[Asked] = []
        self._models: dict[str, Repository] = {}
        self._planned: list[Planned] = []
        self._lock = threading.Lock()
        self._servers = [Server(0, self._answer, on_cdn=on_cdn) for on_cdn in (False, True)]
        self.address, self._cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def stop(self) -> None:
        """Cut the network: end all connections and refuse new ones."""
        for server in self._servers:
            server.stop()

    def start(self) -> None:
        """Restore the network, at the same address."""
        self._servers = [Server(old.server_port, self._answer, on_cdn=old.on_cdn) for old in self._servers]

    def commit(self, model: str, files: Mapping[str, bytes] | Path, branch: str = "main") -> str:
        """Add a commit of exactly these files, or of a folder's; move the branch there. Return its 40 hex digits."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        blobs = {name: Blob(data, any(fnmatchcase(name, like) for like in LFS)) for name, data in files.items()}
        repository = self._models.setdefault(model, Repository())
        seed = [model, branch, len(repository.commits), sorted((name, blob.oid) for name, blob in blobs.items())]
        commit = hashlib.sha1(json.dumps(seed).encode(), usedforsecurity=False).hexdigest()
        repository.commits[commit] = blobs
        repository.branches[branch] = commit
        return commit

    def move(self, model: str, branch: str, commit: str) -> None:
        """Point a branch to an existing commit."""
        self._models[model].branches[branch] = commit

    def close_to(self, model: str, how: Literal["gated", "private"], token: str) -> None:
        """Require `token` for the files (gated), or for any knowledge of the model (private)."""
        self._models[model].closed, self._models[model].token = how, token

    def fault(
        self, path: str, fault: Fault, times: int = 1, *, at: int | None = None, retry_after_s: int | None = None
    ) -> None:
        """Inject a fault into the next responses whose URL path ends with `path`, see `Planned`."""
        self._planned.append(Planned(path, fault, times, at, retry_after_s))

    def bodies(self, path: str) -> list[Asked]:
        """Return the requests for a path ending with `path` that were answered with a body."""
        return [asked for asked in self.asked if asked.path.endswith(path) and asked.sent]

    def sent(self, path: str = "") -> int:
        """Return the bytes of all bodies sent for paths ending with `path`."""
        return sum(asked.sent for asked in self.bodies(path))

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a process that uses this Hub and no settings of the user."""
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)}
        return own | {"HF_ENDPOINT": self.address, "HF_HOME": str(self.home)}

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Do the same for this process, where huggingface_hub read its environment on import; skip retry waits."""
        environment = self.environment
        for name in set(os.environ) - set(environment):
            patch.delenv(name)
        for name in ("HF_ENDPOINT", "HF_HOME"):
            patch.setenv(name, environment[name])
        values = {
            "ENDPOINT": self.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"),
            "HF_TOKEN_PATH": str(self.home / "token"),
            "HF_STORED_TOKENS_PATH": str(self.home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(self.home / ".agent_harnesses.json"),
            "HF_HUB_OFFLINE": False,
            "DOWNLOAD_CHUNK_SIZE": PIECE,  # a cut connection loses up to one chunk; 10 MiB by default
        }
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.setattr("captioner.hub.api.RETRY_WAITS_S", (0, 0, 0))
        for module in ("file_download", "utils._http"):
            patch.setattr(f"huggingface_hub.{module}.time", _NoWait())

    def _answer(self, reply: Reply, path: str) -> None:
        """Route a request. `path` is still quoted, because a branch name may contain a slash."""
        self.asked.append(reply.asked)
        if reply.asked.on_cdn:
            self._send(reply, sha256=path.split("/")[2])
        elif cached := CACHED.fullmatch(path):
            model, commit, name = cached.groups()
            reply.body(self._models[model].commits[commit][unquote(name)].data, {}, self._fault(reply))
        elif path.startswith("/api/models/"):
            self._describe(reply, path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._resolve(reply, *_split(path[1:], "resolve"))
        else:
            reply.error(404, "", "no such page")

    def _send(self, reply: Reply, sha256: str) -> None:
        commits = [files for repository in self._models.values() for files in repository.commits.values()]
        (blob, *_) = (blob for files in commits for blob in files.values() if blob.sha256 == sha256)
        reply.body(blob.data, {}, self._fault(reply))

    def _describe(self, reply: Reply, path: str) -> None:
        """`GET /api/models/MODEL[/revision/REVISION]` and `/tree/REVISION`; a gated model is listed."""
        kind = "tree" if "/tree/" in path else "revision"
        model, revision, _ = _split(path, kind)
        commit, files = self._opened(reply, model, revision, listing=True)
        if not commit:
            return
        query = reply.asked.query
        about: dict[str, Any] = {"id": model, "sha": commit}
        if "expand" not in query:
            about["siblings"] = [
                {"rfilename": name, **(blob.about("blobId", "sha256") if "blobs" in query else {})}
                for name, blob in sorted(files.items())
            ]
        tree = [{"type": "file", "path": name, **blob.about("oid", "oid")} for name, blob in sorted(files.items())]
        reply.json(tree if kind == "tree" else about, self._fault(reply))

    def _resolve(self, reply: Reply, model: str, revision: str, name: str) -> None:
        """`HEAD` and `GET /MODEL/resolve/REVISION/NAME`."""
        commit, files = self._opened(reply, model, revision)
        if not commit:
            return
        if name not in files:
            reply.error(404, "EntryNotFound", f"{name} is not there", {"X-Repo-Commit": commit})
            return
        blob = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"'}
        if blob.in_lfs:
            linked = {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            reply.head(302, {**headers, **linked, "Location": f"{self._cdn}/cdn/{blob.sha256}/{name}"})
        elif reply.asked.method == "HEAD":
            reply.head(200, headers, len(blob.data))
        else:
            reply.head(307, {**headers, "Location": f"/api/resolve-cache/models/{model}/{commit}/{name}"})

    def _opened(self, reply: Reply, model: str, revision: str, *, listing: bool = False) -> tuple[str, dict[str, Blob]]:
        """Return the commit and its files; send a refusal and return ("", {}) if the request may not have them."""
        repository, token = self._models.get(model), reply.asked.token
        if repository is None or (repository.closed == "private" and token != repository.token):
            # Without a token, the Hub does not reveal whether the model exists.
            reply.error(404 if token else 401, "RepoNotFound", "Repository not found")
            return "", {}
        if repository.closed == "gated" and token != repository.token and not listing:
            reply.error(403 if token else 401, "GatedRepo", f"Access to model {model} is restricted")
            return "", {}
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            reply.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return "", {}
        return commit, repository.commits[commit]

    def _fault(self, reply: Reply) -> Planned | None:
        with self._lock:
            for planned in self._planned:
                if planned.times and reply.asked.path.endswith(planned.path):
                    planned.times -= 1
                    return planned
        return None


class _NoWait:
    """A stand-in for the module `time` whose sleep returns immediately."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "sleep" else getattr(time, name)


def _split(path: str, kind: str) -> tuple[str, str, str]:
    """Split `MODEL/kind/REVISION/NAME`, and unquote the parts."""
    model, _, rest = path.partition(f"/{kind}/")
    revision, _, name = rest.partition("/")
    return model, unquote(revision) or "main", unquote(name)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a real captioner on the Hub: seeded weights, tokenizer, processor and card."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_vision_encoder_decoder(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub that this process uses instead of the real one."""
    started = Hub(tmp_path / "huggingface")
    started.patch(monkeypatch)
    close_session()  # it still has connections to another test's Hub
    yield started
    started.stop()
    close_session()
