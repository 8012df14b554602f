"""The packages that `pip install captioner` brings, linked into a folder from this environment."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement


def link_base_packages(folder: Path) -> None:
    """Link the base dependencies, and what they depend on, into `folder`; no other package of this environment."""
    waiting = [Requirement(line) for line in importlib.metadata.requires("captioner") or []]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        key = (wanted.name.lower(), frozenset(extras))
        if key in seen or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        for line in importlib.metadata.requires(wanted.name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                requirement.marker = None
                waiting.append(requirement)
    site = Path(sysconfig.get_path("purelib"))
    for name, _ in seen:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(site / top)
