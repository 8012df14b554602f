"""Metrics of benchmark rounds, and the machine they ran on.

TTFT (time to first token) is from sending a request to its first token; for a system that does not stream, to its last
token. TPOT (time per output token) is (end − first token) / (tokens − 1) of a caption that streams. Throughput is the
requested tokens over the time from the first request to the last caption.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers


@dataclass
class Round:
    """One round of one system at one concurrency.

    `unserved_ms`: how long the requests that were still queued when the round was cut had waited.
    """

    seconds: float = 0.0
    tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    unserved_ms: list[float] = field(default_factory=list)
    captions: dict[int, list[int]] = field(default_factory=dict)  # token ids by request number

    def add(self, number: int, token_ids: list[int], sent: float, first: float, ended: float) -> None:
        """Record one caption; times in s. Without streaming, `first` is equal to `ended`."""
        self.captions[number] = token_ids
        self.tokens += len(token_ids)
        self.ttft_ms.append((first - sent) * 1000)
        if len(token_ids) > 1 and first < ended:
            self.tpot_ms.append((ended - first) / (len(token_ids) - 1) * 1000)

    @property
    def tokens_per_s(self) -> float:
        """The throughput."""
        return self.tokens / self.seconds

    @property
    def captions_per_s(self) -> float:
        """Captions per second."""
        return len(self.captions) / self.seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-len(ordered) * percent // 100) - 1, 0)]


def summary(rounds: Sequence[Round]) -> dict[str, float | bool | int | None]:
    """Return medians over rounds, percentiles over all captions, and the lowest and highest throughput.

    Requests that were unserved when a round was cut count with the time that they had waited. The TTFT percentiles are
    then lower bounds, and `ttft_is_lower_bound` is true.
    """
    rates = [one.tokens_per_s for one in rounds]
    ttft = [ms for one in rounds for ms in [*one.ttft_ms, *one.unserved_ms]]
    tpot = [ms for one in rounds for ms in one.tpot_ms]
    rate = statistics.median(rates)
    return {
        "tokens_per_s": round(rate, 2),
        "tokens_per_s_low": round(min(rates), 2),
        "tokens_per_s_high": round(max(rates), 2),
        "captions_per_s": round(statistics.median(one.captions_per_s for one in rounds), 3),
        "ms_per_token": round(1000 / rate, 2),
        "ttft_p50_ms": round(percentile(ttft, 50), 1),
        "ttft_p99_ms": round(percentile(ttft, 99), 1),
        "ttft_is_lower_bound": any(one.unserved_ms for one in rounds),
        "tpot_p50_ms": round(statistics.median(tpot), 2) if tpot else None,
        "captions": sum(len(one.captions) for one in rounds),
        "rounds": len(rounds),
    }


def machine() -> dict[str, str | int]:
    """Return the CPU, its cores, the versions of torch and transformers, and torch's threads."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
