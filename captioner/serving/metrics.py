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
REFUSED = Metric("captioner_refused_total", "COUNTER", "Requests answered with an error, by its code")
IMAGES_ENCODED = Metric("captioner_images_encoded_total", "COUNTER", "Images encoded")
CACHE_HITS = Metric("captioner_cache_hits_total", "COUNTER", "Requests whose image features were in the feature cache")
TTFT = Metric("captioner_time_to_first_token_ms_total", "COUNTER", "Sum of times to first token, in ms")
ALL = (RUNNING, WAITING, SLOTS, TOKENS, CAPTIONS, CANCELLED, REFUSED, IMAGES_ENCODED, CACHE_HITS, TTFT)

Values = dict[tuple[str, str], float]  # (metric's name, error code or "") → current value


class Counters:
    """Counts of this process. They are reported to Triton later, because each report costs a round trip."""

    def __init__(self) -> None:
        self._counts: Values = {(metric.name, ""): 0.0 for metric in ALL}
        self._lock = threading.Lock()

    def add(self, metric: Metric, amount: float = 1.0, code: str = "") -> None:
        """Increase a counter, or with `code` the counter of one error code."""
        with self._lock:
            self._counts[metric.name, code] = self._counts.get((metric.name, code), 0.0) + amount

    def values(self, load: EngineLoad) -> Values:
        """Return the current value of every metric."""
        with self._lock:
            values = dict(self._counts)
        engine = {RUNNING: load.running, WAITING: load.waiting, SLOTS: load.slots, TOKENS: load.tokens}
        return values | {(metric.name, ""): float(value) for metric, value in engine.items()}


class TritonMetrics:
    """The metrics on Triton's /metrics endpoint, labelled by version. Instances of one version (one a device) add up.

    Refusals are also labelled by error code. `family` is Triton's class MetricFamily. `close` removes a version's
    metrics with the version.
    """

    def __init__(self, family: Any, version: str) -> None:
        # Triton drops a metric when its family is freed.
        self._families = {each.name: family(each.name, each.doc, getattr(family, each.kind)) for each in ALL}
        self._version = version
        self._metrics: dict[tuple[str, str], Any] = {}
        self._values: Values = {}
        self.update({(each.name, ""): 0.0 for each in ALL if each is not REFUSED})

    def update(self, values: Mapping[tuple[str, str], float]) -> None:
        """Set the current `values` of every metric. Only changed values are sent, as increments."""
        for key, now in values.items():
            if key not in self._metrics:
                name, code = key
                if name == REFUSED.name and not code:
                    continue
                labels = {"version": self._version} | ({"code": code} if code else {})
                self._metrics[key] = self._families[name].Metric(labels=labels)
                self._values[key] = 0.0
            if now != self._values[key]:
                self._metrics[key].increment(now - self._values[key])
                self._values[key] = now

    def close(self) -> None:
        """Remove the metrics. Call it in `finalize`, while Triton still accepts calls."""
        self._metrics.clear()
        self._families.clear()
