"""Watch the stub processes of one tritonserver, each of which runs one instance of a Python model.

tritonserver 2.51 does not notice a dead stub, which stays a zombie. The stub of a model that is unloaded is a zombie
only for a moment.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

_SCAN_SECONDS = 1.0  # between searches for new stubs, which read all of /proc
_ZOMBIE_SECONDS = 0.2  # a stub that is a zombie for that long was not unloaded
_UNKNOWN = "a model"


class Stubs:
    """The stub processes of one server."""

    def __init__(self) -> None:
        self._instances: dict[int, str] = {}  # process id → model instance
        self._dead_since: dict[int, float] = {}
        self._forgotten: set[int] = set()
        self._next_scan = 0.0

    def dead(self, server: int) -> str | None:
        """Return the model instance whose stub has died, such as `preprocess_0_1`; None if all are alive."""
        now = time.monotonic()
        if now >= self._next_scan:
            self.find(server)
        for pid, instance in list(self._instances.items()):
            state = _state_and_parent(pid)
            if state is None or state[1] != server:
                del self._instances[pid]
            elif state[0] != "Z":
                self._dead_since.pop(pid, None)
            elif now - self._dead_since.setdefault(pid, now) >= _ZOMBIE_SECONDS:
                return instance
        return None

    def find(self, server: int) -> None:
        """Look for new stubs now: the name of a stub that dies before it is found is unknown."""
        self._next_scan = time.monotonic() + _SCAN_SECONDS
        for pid in children(server) - self._instances.keys() - self._forgotten:
            self._instances[pid] = _instance(pid)

    def forget(self, server: int, model: str) -> None:
        """Stop watching the stubs that run `model` now, because others are about to take their place."""
        for pid in children(server):
            if model_of(self._instances.get(pid) or _instance(pid)) in (model, None):
                self._instances.pop(pid, None)
                self._forgotten.add(pid)


def model_of(instance: str) -> str | None:
    """Return the model of an instance's name, such as `preprocess` of `preprocess_0_1`; None if it is unknown."""
    found = re.fullmatch(r"(.+)_\d+_\d+", instance)
    return found[1] if found else None


def children(parent: int) -> set[int]:
    """Return the process ids of the children of `parent`, including zombies."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {pid for pid in pids if (state := _state_and_parent(pid)) and state[1] == parent}


def _state_and_parent(pid: int) -> tuple[str, int] | None:
    """Return a process' state letter, as in /proc, and its parent's process id; None if it has ended."""
    try:
        # In bytes: a process' name may be cut inside a UTF-8 character. It stands in parentheses and may hold some.
        state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return state.decode("ascii"), int(parent)


def _instance(stub: int) -> str:
    """Return the name of the model instance that a stub runs: its last but one argument."""
    try:
        return Path(f"/proc/{stub}/cmdline").read_bytes().split(b"\0")[-3].decode(errors="replace")
    except (OSError, IndexError):
        return _UNKNOWN
