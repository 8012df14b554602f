"""How long to wait before a process that has ended is started again."""

from __future__ import annotations

LONG_RUN_S, FIRST_WAIT_S, MAX_WAIT_S = 10.0, 1.0, 60.0


class Backoff:
    """No wait after a run of at least 10 s; then 1 s, doubled after each shorter run, up to a minute."""

    def __init__(self) -> None:
        self.failures = 0  # in a row, the last one included

    def wait_s(self, ran_s: float) -> float:
        """Record that the process has ended after `ran_s` seconds; return the seconds until the next start."""
        self.failures = 1 if ran_s >= LONG_RUN_S else self.failures + 1
        return 0.0 if self.failures == 1 else min(FIRST_WAIT_S * 2.0 ** min(self.failures - 2, 16), MAX_WAIT_S)
