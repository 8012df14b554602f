"""The server's own Prometheus metrics. Triton's built-in ones measure only the hand-off to a decoupled model."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from captioner.engine.engine import EngineLoad


@dataclass(frozen=True)
class Metric:
    """A Prometheus metric."""

    name: str
    kind: Literal["COUNTER", "GAUGE"]
    doc: str


RUNNING = Metric("captioner_running", "GAUGE", "Captions being decoded")
WAITING = Metric("captioner_waiting", "GAUGE", "Requests admitted and not yet decoding")
SLOTS = Metric("captioner_slots", "GAUGE", "Captions that can be decoded at the same time")
TOKENS = Metric("captioner_tokens_total", "COUNTER", "Tokens decoded")
CAPTIONS = Metric("captioner_captions_total", "COUNTER", "Captions finished")
CANCELLED = Metric("captioner_cancelled_total", "COUNTER", "Requests cancelled by their client")
REFUSED = Metric("captioner_refused_total", "COUNTER", "Requests answered with an error")
CACHE_HITS = Metric("captioner_cache_hits_total", "COUNTER", "Requests whose image features were in the feature cache")
TTFT = Metric("captioner_time_to_first_token_ms_total", "COUNTER", "Sum of times to first token, in ms")
ALL = (RUNNING, WAITING, SLOTS, TOKENS, CAPTIONS, CANCELLED, REFUSED, CACHE_HITS, TTFT)


class Counters:
    """Counts of this process. They are reported to Triton later, because each report costs a round trip."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys((metric.name for metric in ALL), 0.0)
        self._lock = threading.Lock()

    def add(self, metric: Metric, amount: float = 1.0) -> None:
        """Increase a counter."""
        with self._lock:
            self._counts[metric.name] += amount

    def values(self, load: EngineLoad) -> dict[str, float]:
        """Return the current value of every metric, by name."""
        with self._lock:
            values = dict(self._counts)
        engine = {RUNNING: load.running, WAITING: load.waiting, SLOTS: load.slots, TOKENS: load.tokens}
        return values | {metric.name: float(value) for metric, value in engine.items()}


class TritonMetrics:
    """The metrics on Triton's /metrics endpoint, labelled by version. Instances of one version (one a device) add up.

    `family` is Triton's class MetricFamily. `close` removes a version's metrics with the version.
    """

    def __init__(self, family: Any, version: str) -> None:
        families = {m.name: family(m.name, m.doc, getattr(family, m.kind)) for m in ALL}
        self._families = families  # Triton drops a metric when its family is freed
        self._metrics = {name: each.Metric(labels={"version": version}) for name, each in families.items()}
        self._values = dict.fromkeys(families, 0.0)

    def update(self, values: Mapping[str, float]) -> None:
        """Set the current `values` of every metric. Only changed values are sent, as increments."""
        for name, now in values.items():
            if now != self._values[name]:
                self._metrics[name].increment(now - self._values[name])
                self._values[name] = now

    def close(self) -> None:
        """Remove the metrics. Call it in `finalize`, while Triton still accepts calls."""
        self._metrics.clear()
        self._families.clear()
