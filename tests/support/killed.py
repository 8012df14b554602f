"""A publish whose process is killed at one step, or stopped by a signal.

The steps are the calls that change the repository or send a request, in order. The process dies when the call begins;
at the step "load captioner" it dies during the call.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from captioner import cli
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
TIMEOUT_S = 120.0
INSIDE_S = 1.0  # the load takes longer than that


def leave_unfinished(store: VersionStore, exported: Path, placed: Sequence[str] = VERSIONED) -> int:
    """Leave a publish unfinished after it has placed these models' folders; return its version."""
    version = store.stage()
    publishing._fill(exported, Manifest.load(exported / CAPTIONER), store.staged(version), move=False)
    for model in placed:
        store.place(model, version)
    return version


def publish_killed(step: str, exported: Path, repository: Path, address: str, log: Path) -> list[str]:
    """Run a publish that is killed at `step`; return the names of the steps that began, the last one unfinished."""
    with _forked(_publish, step, exported, repository, address, log) as process:
        process.join(TIMEOUT_S)
        assert process.exitcode is not None, f"step {step} was not reached within {TIMEOUT_S:g} s"
    assert process.exitcode == -signal.SIGKILL, f"the publish has no step {step}: exit code {process.exitcode}"
    return log.read_text().split()


def publish_terminated(line: str, arguments: Sequence[str], log: Path) -> int | None:
    """Run `captioner publish ARGUMENTS` and send SIGTERM once it has logged `line`; return its exit code."""
    log.touch()
    with _forked(_publish_verb, arguments, log) as process:
        end = time.monotonic() + TIMEOUT_S
        while line not in log.read_text() and process.is_alive():
            assert time.monotonic() < end, f"{line!r} was not logged within {TIMEOUT_S:g} s"
            time.sleep(0.01)
        process.terminate()
        process.join(TIMEOUT_S)
        return process.exitcode


@contextmanager
def _forked(target: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # import torch once for all of these processes
    process = context.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _publish_verb(arguments: Sequence[str], log: Path) -> None:
    with log.open("a") as file, contextlib.redirect_stdout(file):
        sys.exit(cli.main(["publish", *arguments]))


def _publish(step: str, exported: Path, repository: Path, address: str, log: Path) -> None:
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
    publishing.publish(exported, VersionStore(repository), [ModelControl(address, key)], lambda _: None)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
