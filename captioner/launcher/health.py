"""Call a probe again and again on a thread of its own, so that a slow probe delays neither fault detection nor stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

_MAX_FAILURES = 2  # consecutive

Probe = Callable[[], str | None]


class Health:
    """The probes of one run of a server."""

    def __init__(self, probe: Probe | None, period_s: float) -> None:
        """Call `probe` every `period_s` seconds until `stop`. It returns why the server does not work, or None."""
        self._period_s = period_s
        self._fault: str | None = None
        self._stopping = threading.Event()
        if probe is not None:
            threading.Thread(target=self._run, args=(probe,), name="health", daemon=True).start()

    @property
    def fault(self) -> str | None:
        """Why the server counts as dead: the reason of the last of two failures in a row. None while it works."""
        return self._fault

    def stop(self) -> None:
        """Start no further probe. The one in progress ends by its own time limit, and its result is ignored."""
        self._stopping.set()

    def _run(self, probe: Probe) -> None:
        failures = 0
        while self._fault is None and not self._stopping.wait(self._period_s):
            try:
                reason = probe()
            except Exception as error:  # a probe that cannot run shows no work either
                reason = f"{type(error).__name__}: {error}"
            failures = failures + 1 if reason else 0
            if failures == _MAX_FAILURES:
                self._fault = f"the probe failed {_MAX_FAILURES} times in a row: {reason}"
