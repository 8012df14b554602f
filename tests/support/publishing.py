"""Publishing into a running Triton server while clients send requests, and exports that hold a fault."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc
from safetensors.numpy import load_file, save_file

from captioner.artifacts.manifest import GOLDEN_IMAGE, Card, Manifest, sha256
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.errors import CaptionerError
from captioner.examples import PHOTOS
from captioner.launcher.supervisor import TritonServer
from captioner.publish.model_control import ModelControl, admin_key
from captioner.publish.rollback import rollback
from captioner.publish.warm_standby import load_previous_version
from captioner.wire import CAPTIONER
from tests.artifacts.test_manifest import MANIFEST
from tests.support.served import assert_soon
from tests.support.unary import infer

MODEL = "org/tiny"  # version 1 of a Stand, on the Hub
Expected = dict[str, list[str]]  # revision → the caption of each example photo


@dataclass
class Load:
    """Clients that request captions, whole, streamed and by `infer`, each with `pause_s` between two requests.

    `faults` collects errors and captions of the wrong model.
    """

    address: str
    expected: Expected
    clients: int
    pause_s: float = 0
    faults: list[str] = field(default_factory=list)
    by_version: dict[str, int] = field(default_factory=dict)  # requests that each version answered
    inferred: set[str] = field(default_factory=set)  # the versions that answered by `infer`
    stop: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        with Client(self.address) as client, tritonclient.grpc.InferenceServerClient(self.address) as plain:
            while not self.stop.wait(self.pause_s):
                number = next(self._numbers)
                example = number % len(PHOTOS)
                # A different file each time, so that no request is served from the feature cache.
                photo = PHOTOS[example].read_bytes() + str(number).encode()
                try:
                    if number % 3:
                        caption = client.caption(photo) if number % 3 == 1 else infer(tritonclient.grpc, plain, photo)
                        text, details = caption.text, caption.details
                    else:
                        with client.stream(photo) as stream:
                            text = "".join(stream)
                            assert stream.details is not None
                            details = stream.details
                except CaptionerError as error:
                    self.faults.append(error.wire())
                    continue
                if number % 3 == 2:
                    self.inferred.add(details.version)
                self.by_version[details.version] = self.by_version.get(details.version, 0) + 1
                if text != self.expected[details.revision][example]:
                    self.faults.append(f"version {details.version} of {details.revision} wrote {text!r} of {example}")

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self.run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Stand:
    """Running servers on one repository, whose version 1 is the first of two models."""

    store: VersionStore
    expected: Expected
    servers: list[TritonServer] = field(default_factory=list)
    controls: list[ModelControl] = field(default_factory=list)

    @contextmanager
    def start(self, log_path: Path) -> Iterator[None]:
        """Run one more server on the repository during the block."""
        free: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        key = admin_key(self.store.path)
        with TritonServer(self.store.path, log_path=log_path, admin_key=key, **free) as server:
            self.servers.append(server)
            self.controls.append(ModelControl(server.grpc_address, key))
            yield
            self.servers.remove(server)
            self.controls.pop()

    @property
    def address(self) -> str:
        """Return the gRPC address of the first server."""
        return self.servers[0].grpc_address

    def load(self, server: int = 0, *, clients: int = 2, pause_s: float = 0.2) -> Load:
        """Return clients that send requests inside a `with` block. Without a pause, loads take 2 to 3 times as long."""
        return Load(self.servers[server].grpc_address, self.expected, clients, pause_s)

    def live(self, server: int = 0) -> tuple[str, str]:
        """Return version and revision of a caption requested now."""
        with Client(self.servers[server].grpc_address) as client:
            details = client.caption(PHOTOS[0]).details
        return details.version, details.revision

    def reset(self) -> None:
        """Make version 1 live and the only loaded one on every server, whatever the previous test left."""
        with self.store.lock():
            self.store.recover()
        while len(self.store.versions()) > 1:
            rollback(self.store, self.controls, quiet)
        for control in self.controls:
            if any(control.loaded(model) != {1} for model in VERSIONED):
                load_previous_version(self.store, control)
        assert_soon(lambda: all(each.loaded(model) == {1} for each in self.controls for model in VERSIONED), 30)


def quiet(_: str) -> None:
    """Log nothing."""


def revision(exported: Path) -> str:
    return Manifest.load(exported / CAPTIONER).revision


def with_use(files: Mapping[str, bytes], use: str) -> dict[str, bytes]:
    """Return the files of another commit of the same model: its card has another intended use."""
    return {**files, "README.md": f"---\nlicense: mit\nbase_model: org/base\n---\n## Uses\n{use}\n".encode()}


def text_export(folder: Path, revision: str = "a" * 40, model: str = MANIFEST.model) -> Path:
    """Write an export whose weights are a line of text: enough for version folders, not for a server."""
    shutil.rmtree(folder, ignore_errors=True)
    for each in VERSIONED:
        (folder / each).mkdir(parents=True)
        (folder / each / "weights").write_text(f"{each} {revision}")
    (folder / CAPTIONER / GOLDEN_IMAGE).write_bytes(b"an image that is not decoded")
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.glob("*/*")}
    card = Card("mit", "org/base", "Photos of cats.")
    manifest = replace(MANIFEST, files=files, model=model, revision=revision, card=card)
    for each in VERSIONED:
        manifest.save(folder / each)
    return folder


def complete_versions(store: VersionStore) -> list[int]:
    """Return the published versions. Fails if any is incomplete, or if a part of another version is placed."""
    for model in VERSIONED:
        numbers = {int(path.name) for path in (store.path / model).iterdir() if path.name.isdecimal()}
        assert numbers - {1} == set(store.versions()) - {1}, f"{model} has {numbers}"
    for number, manifest in store.versions().items():
        manifest.verify(store.path, str(number))
    return list(store.versions())


def damaged(exported: Path, folder: Path, kind: str) -> Path:
    """Copy an export and damage it. Its hashes are updated, except for the kinds that hashes are to detect."""
    copy = shutil.copytree(exported, folder)
    graph, weights = copy / "vision_encoder" / "model.onnx", copy / "captioner" / "decoder" / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "checksum":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif kind == "graph":
        model = onnx.load(graph)
        model.graph.node[5].op_type = "NoSuchOperator"
        onnx.save(model, graph)
    elif kind == "features":
        model = onnx.load(graph)
        biggest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        biggest.raw_data = (onnx.numpy_helper.to_array(biggest) * 3).tobytes()
        onnx.save(model, graph)
    elif kind == "nan":
        tensors = load_file(weights)
        name = max(tensors, key=lambda each: tensors[each].size)
        tensors[name] = np.full_like(tensors[name], np.nan)
        save_file(tensors, weights, {"format": "pt"})
    elif kind == "weights":
        tensors = load_file(weights)
        save_file({name: -each for name, each in tensors.items()}, weights, {"format": "pt"})
    if kind not in ("truncated", "checksum"):
        for model_name in VERSIONED:
            path = copy / model_name / "manifest.json"
            values = json.loads(path.read_text())
            values["files"] = {name: sha256(copy / name) for name in values["files"]}
            path.write_text(json.dumps(values))
    return copy
