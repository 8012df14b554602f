"""Health checks that generate a short caption: an open port does not prove that the model works."""

from __future__ import annotations

import base64
import re
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

from captioner.client.sync_client import Client
from captioner.errors import CaptionerError

# A 16 × 16 px gradient as PNG, in base64, because the client does not import Pillow.
TINY_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAG0lEQVR42mPkYEAFLPzoAoLoAgLDR4DxO5oAALc0Ahp3QqCzAAAAAElFTkSuQmCC"
)
# Counters that move while a server works on requests, whatever it answers.
_WORK = re.compile(r"^captioner_(?:tokens|images_encoded)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_METRICS_SECONDS = 5.0


def probe(address: str, timeout_s: float) -> str:
    """Return a caption of a few tokens. Raises a CaptionerError when no server answers in time."""
    with Client(address, stall_timeout_s=timeout_s, shrink=False) as client:
        return client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text


class HealthCheck:
    """Probes one server again and again. An overloaded server is alive: it refuses the probe, but it makes progress."""

    def __init__(self, address: str, metrics_address: str, timeout_s: float, log: Callable[[str], None]) -> None:
        self._address = address
        self._metrics_address = metrics_address
        self._timeout_s = timeout_s
        self._log = log
        self._work: float | None = None

    def __call__(self) -> str | None:
        """Return None if a caption came, or if tokens or images were counted since the last call; else the error.

        Every failed probe is logged with its reason.
        """
        before = work_done(self._metrics_address) if self._work is None else self._work
        failure = None
        try:
            probe(self._address, self._timeout_s)
        except CaptionerError as error:
            failure = error.wire()
        self._work = work_done(self._metrics_address)
        if failure is None:
            return None
        progresses = None not in (before, self._work) and before != self._work
        verdict = "the server makes progress, so it is overloaded" if progresses else "the server makes no progress"
        self._log(f"a probe failed, and {verdict}: {failure}")
        return None if progresses else failure


def work_done(metrics_address: str) -> float | None:
    """Return the number of tokens and images that a server has worked on; None if its metrics cannot be read."""
    try:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=_METRICS_SECONDS) as answer:
            values = _WORK.findall(answer.read().decode())
    except (OSError, ValueError, HTTPException):
        return None
    return sum(map(float, values)) if values else None
