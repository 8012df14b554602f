"""Follow a branch on the Hub: publish each new commit with `captioner publish`.

The publish runs in a process of its own, so that its memory is freed when it ends. When the Hub or a server cannot be
reached, the follower tries again with growing waits. A commit that is quarantined or cannot be exported is skipped
until a newer one appears.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from captioner.artifacts.version_store import VersionStore
from captioner.errors import CaptionerError
from captioner.hub import resolve
from captioner.publish.warm_standby import Log

MIN_INTERVAL_S, MAX_WAIT_S = 1.0, 3600.0
PERMANENT = "MODEL_UNSUPPORTED"  # the code of an error that a retry cannot change


@dataclass(frozen=True)
class Poll:
    """The branch's newest commit, and why it is not to be published; empty if it is."""

    commit: str
    skip_reason: str = ""


class Follower:
    """Publishes new commits of `branch` of `model` into `store`.

    `options` are passed on to `captioner publish`.
    """

    def __init__(self, model: str, branch: str, store: VersionStore, options: Sequence[str], log: Log) -> None:
        self._model = model
        self._branch = branch
        self._store = store
        self._options = list(options)
        self._log = log
        self._failed: dict[str, str] = {}  # commit → the last line of its publish
        self._last_message = ""

    def poll(self) -> Poll:
        """Ask the Hub for the newest commit. Raises HubUnreachable, ModelMissing or AccessDenied."""
        commit = resolve.latest_commit(self._model, self._branch)
        versions = self._store.versions()
        if versions and (live := versions[max(versions)]).model == self._model and live.revision == commit:
            return Poll(commit, f"{self._model}@{commit[:12]} is live")
        if commit in self._failed:
            return Poll(commit, f"{commit[:12]} failed: {self._failed[commit]}")
        if entry := self._store.quarantined_revision(self._model, commit):
            return Poll(commit, f"{commit[:12]} was {entry.state} as version {entry.version}: {entry.reason}")
        return Poll(commit)

    def step(self) -> bool:
        """Poll once and publish a new commit; return False if the same should be tried again later."""
        try:
            poll = self.poll()
        except CaptionerError as error:
            self._log_once(error.wire())
            return False
        if poll.skip_reason:
            self._log_once(f"{poll.skip_reason}; waiting for a newer commit on {self._branch}")
            return True
        self._log(f"publishing {self._model}@{poll.commit}")
        command = [sys.executable, "-m", "captioner.cli", "publish", f"{self._model}@{poll.commit}", *self._options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                lines = [line for line in process.stderr.read().splitlines() if line.strip()]
            except BaseException:  # on Ctrl-C or SIGTERM the publish aborts what it has begun
                process.terminate()
                raise
        if process.returncode == 0:
            return True
        last = lines[-1] if lines else f"exit code {process.returncode}"
        self._log(last)
        if last.startswith(PERMANENT):
            self._failed[poll.commit] = last
        return last.startswith(PERMANENT)

    def run(self, interval_s: float, wake: threading.Event) -> None:
        """Step every `interval_s` seconds, later after failures, immediately when `wake` is set; never return."""
        wait_s = interval_s
        while True:
            wait_s = interval_s if self.step() else min(wait_s * 2, max(MAX_WAIT_S, interval_s))
            wake.wait(wait_s * random.uniform(0.9, 1.1))  # spread the requests of many followers
            wake.clear()

    def _log_once(self, message: str) -> None:
        """Log a message unless it repeats the previous one."""
        if message != self._last_message:
            self._log(message)
        self._last_message = message
