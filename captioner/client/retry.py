"""The retry policy of the client: when a request that failed everywhere is sent again, and when it is given up.

It knows errors and time, no network. Bulk jobs, the page's probes and `publish` use the same policy.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from captioner.errors import CaptionerError, CaptionsDiffer, DeadlineExceeded, ParameterInvalid

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0


@dataclass(frozen=True)
class RetryPolicy:
    """How long requests are retried when no replica can answer: busy, restarting, or away.

    `max_elapsed_s`: seconds from the beginning of an outage until its requests fail; 0 (the default) fails fast, after
    each replica was asked once. The wait between attempts doubles from 0.1 s to 5 s, with jitter. A request's own
    `deadline_ms` ends it earlier. Refused requests (a bad parameter, a broken image) are never retried.
    """

    max_elapsed_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_elapsed_s >= 0:
            raise ParameterInvalid(f"max_elapsed_s is {self.max_elapsed_s:g}; it must be 0 or more seconds")


def is_transient(error: CaptionerError) -> bool:
    """Return whether another replica, or the same one later, may answer the request."""
    return error.status == "UNAVAILABLE" and not isinstance(error, DeadlineExceeded | CaptionsDiffer)


class Outage:
    """The retry budget that all requests of one client share.

    A request that starts in the middle of an outage gets only what is left of the budget: after a server has been gone
    for `max_elapsed_s`, a job of a thousand images fails at once, not after a thousand timeouts.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._began = self._last_failure = float("-inf")

    def wait_s(self, attempt: int) -> float | None:
        """Record that attempt number `attempt` (from 0) failed; return the seconds to wait, or None to give up."""
        now, budget_s = time.monotonic(), self._policy.max_elapsed_s
        if attempt == 0 and now - self._last_failure > max(budget_s, LONGEST_WAIT_S):
            self._began = now
        self._last_failure = now
        wait_s = min(FIRST_WAIT_S * 2 ** min(attempt, 16), LONGEST_WAIT_S)
        return wait_s * random.uniform(0.5, 1.5) if now - self._began + wait_s <= budget_s else None

    def over(self) -> None:
        """Record that a server answered."""
        self._last_failure = float("-inf")
