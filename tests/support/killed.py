"""A publish whose process is killed at one step.

The steps are the calls that change something or ask a server, in their order; the process dies as the call begins, or,
with the step "load captioner", in the middle of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.publish import publish as publishing
from captioner.publish.model_control import ModelControl, admin_key
from captioner.wire import CAPTIONER

STEPS: list[tuple[Any, str]] = [
    (VersionStore, "stage"),
    (publishing, "_fill"),
    (Manifest, "verify"),
    (VersionStore, "place"),
    (ModelControl, "load"),
    (ModelControl, "infer"),
    (Client, "caption"),
    (VersionStore, "confirm"),
    (VersionStore, "prune"),
]
INSIDE_S = 1.0  # of a load that takes some seconds


def leave_begun(repository: VersionStore, artefact: Path, placed: Sequence[str] = VERSIONED) -> int:
    """The version whose publish has placed these models' folders and is then gone."""
    version = repository.stage()
    publishing._fill(artefact, Manifest.load(artefact / CAPTIONER), repository.staged(version), take=False)
    for model in placed:
        repository.place(model, version)
    return version


def publish_killed(step: str, artefact: Path, repository: Path, address: str, log: Path) -> list[str]:
    """The names of the steps that began, the one in which it died last."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once for all of them
    process = context.Process(target=_publish, args=(step, artefact, repository, address, log))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"there is no step {step}: exit code {process.exitcode}"
    return log.read_text().split()


def _publish(step: str, artefact: Path, repository: Path, address: str, log: Path) -> None:
    calls = 0

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            with log.open("a") as file:
                file.write(f"{name}\n")
            if str(calls) == step:
                _die()
            if name == "load" and step == f"load {arguments[2]}":
                threading.Timer(INSIDE_S, _die).start()
            return original(*arguments, **options)

        setattr(owner, name, call)

    for owner, name in STEPS:
        counted(owner, name)
    key = admin_key(repository)
    publishing.publish(artefact, VersionStore(repository), [ModelControl(address, key)], lambda _: None)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
