"""The client's retry policy: when a request that failed on every replica is sent again, and when it fails.

It knows errors and time, not the network. Bulk jobs use the same policy.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from captioner.errors import CaptionerError, CaptionsDiffer, DeadlineExceeded, ParameterInvalid

FIRST_WAIT_S, MAX_WAIT_S = 0.1, 2.0


@dataclass(frozen=True)
class RetryPolicy:
    """How long requests are retried while no replica can answer: busy, restarting, or unreachable.

    `max_elapsed_s`: seconds after which a request stops retrying, counted from its first failure, or from the beginning
    of the outage that it met. 0 (the default) fails fast, after each replica was tried once. The wait between attempts
    doubles from 0.1 s to 2 s, with jitter. An attempt in progress is not interrupted. A request's own `deadline_ms`
    ends the retries earlier. Refused requests (a bad parameter, a broken image) are never retried.
    """

    max_elapsed_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_elapsed_s >= 0:
            raise ParameterInvalid(f"max_elapsed_s is {self.max_elapsed_s:g}; it must be 0 or more seconds")


def is_transient(error: CaptionerError) -> bool:
    """Return whether another replica, or the same one later, may answer the request."""
    return error.status == "UNAVAILABLE" and not isinstance(error, DeadlineExceeded | CaptionsDiffer)


class Outage:
    """The time during which no request of a client succeeds. All its requests share one.

    A request that starts during an outage gets only the rest of the budget: once a server has been unreachable for
    `max_elapsed_s`, a job of a thousand images fails immediately, not after a thousand timeouts.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._began: float | None = None
        self._last_failure = 0.0

    def fail(self, now: float) -> float:
        """Record a failed attempt; return when the outage began. Both are times of `time.monotonic`."""
        if self._began is None or now - self._last_failure > max(self.policy.max_elapsed_s, MAX_WAIT_S):
            self._began = now
        self._last_failure = now
        return self._began

    def end(self) -> None:
        """Record that a server answered."""
        self._began = None


class Retries:
    """The attempts of one request."""

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._failures = 0
        self._first_failure = 0.0

    def wait_s(self) -> float | None:
        """Record a failed attempt; return the seconds to wait before the next one, or None when the request fails."""
        now = time.monotonic()
        if not self._failures:
            self._first_failure = now
        began = min(self._first_failure, self._outage.fail(now))
        left_s = began + self._outage.policy.max_elapsed_s - now
        if left_s <= 0:
            return None
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(self._failures, 16), MAX_WAIT_S) * random.uniform(0.5, 1.5)
        self._failures += 1
        return min(wait_s, left_s)

    def progress(self) -> None:
        """Record that a server sent text or details that are new: a later failure has the whole budget again."""
        self._failures = 0
        self._outage.end()
