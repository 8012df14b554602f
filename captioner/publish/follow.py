"""A branch on the Hub, followed: each new commit is pulled, exported and published by `captioner publish`.

That runs as a process of its own, so that its memory leaves with it. What a Hub or a server that is away prevents is
tried again, ever later; a commit that was set aside or that cannot be exported waits for a newer one.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from captioner.artifacts.version_store import VersionStore
from captioner.errors import CaptionerError
from captioner.hub import resolve

LEAST_WAIT_S, LONGEST_WAIT_S = 1.0, 3600.0
FINAL = "MODEL_UNSUPPORTED"  # no later try ends otherwise

Say = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """What one look at the branch found: a commit to publish, or why there is none."""

    commit: str
    why_not: str = ""


class Follower:
    """Follows `branch` of `model` into `repository`; `publish` are the further arguments of `captioner publish`."""

    def __init__(self, model: str, branch: str, repository: VersionStore, publish: Sequence[str], say: Say) -> None:
        self._model = model
        self._branch = branch
        self._repository = repository
        self._publish = list(publish)
        self._say = say
        self._failed: dict[str, str] = {}  # commit → what its publish said
        self._said = ""

    def look(self) -> Look:
        """Asks the Hub. Raises HubUnreachable and its like."""
        commit = resolve.latest_commit(self._model, self._branch)
        versions = self._repository.versions()
        if versions and (live := versions[max(versions)]).model == self._model and live.revision == commit:
            return Look(commit, f"{self._model}@{commit[:12]} is live")
        if commit in self._failed:
            return Look(commit, f"{commit[:12]} failed: {self._failed[commit]}")
        if aside := self._repository.quarantined_revision(self._model, commit):
            return Look(commit, f"{commit[:12]} was {aside.state} as version {aside.version}: {aside.reason}")
        return Look(commit)

    def step(self) -> bool:
        """One look, and a publish if there is something new. False where it is worth trying again later."""
        try:
            look = self.look()
        except CaptionerError as error:
            self._say_once(error.wire())
            return False
        if look.why_not:
            self._say_once(f"{look.why_not}; waiting for a newer commit on {self._branch}")
            return True
        self._say(f"publishing {self._model}@{look.commit}")
        command = [sys.executable, "-m", "captioner.cli", "publish", f"{self._model}@{look.commit}", *self._publish]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                said = [line for line in process.stderr.read().splitlines() if line.strip()]
            except BaseException:  # Ctrl-C or SIGTERM: it takes back what it has begun
                process.terminate()
                raise
        if process.returncode == 0:
            return True
        last = said[-1] if said else f"exit code {process.returncode}"
        self._say(last)
        if last.startswith(FINAL):
            self._failed[look.commit] = last
        return last.startswith(FINAL)

    def run(self, every_s: float, wake: threading.Event) -> None:
        """Looks every `every_s` seconds, later after failures, at once when `wake` is set; for ever."""
        wait_s = every_s
        while True:
            wait_s = every_s if self.step() else min(wait_s * 2, max(LONGEST_WAIT_S, every_s))
            wake.wait(wait_s * random.uniform(0.9, 1.1))  # many followers do not ask at one moment
            wake.clear()

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._say(text)
        self._said = text
