"""What a server needs here and now: memory, disk, ports, a published model; and whether one answers."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from captioner import machine, wire
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VersionStore
from captioner.client import Client
from captioner.client.probe import TINY_IMAGE
from captioner.doctor.report import Problem
from captioner.errors import ArtefactBroken, CaptionerError, StartupRefused
from captioner.launcher.ports import choose_ports
from captioner.launcher.preconditions import full_disk, full_shared_memory, read_only
from captioner.machine import Facts

PORTS = {"HTTP": wire.HTTP_PORT, "gRPC": wire.GRPC_PORT, "metrics": wire.METRICS_PORT, "page": wire.PAGE_PORT}
MIN_FREE_GIB, MIN_SHARED_GIB = 2.0, 0.25


def memory(repository: Path, problems: list[Problem]) -> Facts:
    """Return memory and disk space; report what is short."""
    facts = machine.memory(repository if repository.is_dir() else Path.cwd())
    if facts["available GiB"] < MIN_FREE_GIB:
        free = f"only {facts['available GiB']} GiB of memory are free"
        problems.append(Problem(f"{free}; end other programs, or the model may not load", blocks=False))
    blocking = full_disk(repository), full_shared_memory()
    problems += [Problem(sentence) for sentence in blocking if sentence]
    if not blocking[0] and facts["disk free GiB"] is not None and facts["disk free GiB"] < MIN_FREE_GIB:
        free = f"only {facts['disk free GiB']} GiB are free on the disk of {repository}"
        problems.append(Problem(f"{free}; free some space, because a publish copies the model", blocks=False))
    shared = facts["shared memory free GiB"]
    if not blocking[1] and shared is not None and shared < MIN_SHARED_GIB:
        few = f"only {shared} GiB are free in /dev/shm, which Triton's Python models use"
        problems.append(Problem(f"{few}; start the container with --shm-size=1g", blocks=False))
    return facts


def ports(problems: list[Problem], ours: bool) -> Facts:
    """Return which ports are free. A port in use is a problem unless a Captioner server answers (`ours`)."""
    facts: Facts = {}
    for name, port in PORTS.items():
        try:
            choose_ports("127.0.0.1", {name: port})
            facts[f"{port} ({name})"] = "free"
        except StartupRefused as refusal:
            facts[f"{port} ({name})"] = "taken"
            if not ours:
                problems.append(Problem(str(refusal)))
    return facts


def published(repository: Path, problems: list[Problem]) -> Facts:
    """Return each version's model and whether its files are unchanged since the export; report broken versions."""
    facts: Facts = {"folder": str(repository)}
    if sentence := read_only(repository):
        problems.append(Problem(sentence))
    if not repository.is_dir() or not any(repository.iterdir()):
        return facts | {"versions": "none; `captioner up` creates the repository and publishes the embedded model"}
    try:
        store = VersionStore(repository)
    except ArtefactBroken:
        sentence = f"{repository} is not a model repository of Captioner; name another with --repository"
        problems.append(Problem(sentence))
        return facts
    numbers = store.numbers()
    for version in numbers:
        try:
            manifest = Manifest.load(store.folder(wire.CAPTIONER, version))
            facts[f"version {version}"] = f"{manifest.model}@{manifest.revision[:12]}"
            manifest.verify(repository, str(version))
            facts[f"version {version}"] += ", files verified"
        except ArtefactBroken as broken:
            facts[f"version {version}"] = f"{facts.get(f'version {version}', '')} broken: {broken}".strip()
            sentence = f"version {version} is broken: {broken}"
            problems.append(Problem(sentence, blocks=version == numbers[-1]))
    for quarantined in store.quarantined().values():
        facts[f"version {quarantined.version}"] = f"{quarantined.state}: {quarantined.reason}"
    if not numbers:
        facts["versions"] = "none; `captioner up` publishes the embedded model"
    return facts


def ask_server(address: str, timeout_s: float) -> Facts:
    """Return the card of the server at `address` and the caption of a tiny image, or the server's error."""
    try:
        with Client(address, stall_timeout_s=timeout_s, shrink=False) as client:
            facts: Facts = {"card": asdict(client.describe())}
            began = time.perf_counter()
            facts["caption"] = client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text
            facts["seconds"] = round(time.perf_counter() - began, 3)
            return facts
    except CaptionerError as error:
        return {"answer": error.wire()}
