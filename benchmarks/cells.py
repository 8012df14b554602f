"""What one measured cell (a system at a concurrency) showed, and the machine it was measured on.

TTFT is from sending a request to its first token; for a system that shows nothing before the end, to its end. TPOT is
(end − first token) / (tokens − 1) of a caption, for systems that stream. Throughput counts the tokens that were asked
for, over the time from the first request to the last caption.
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
    """One round of one cell. `unserved_ms` is how long those have waited whom nobody served before it was cut."""

    seconds: float = 0.0
    tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    unserved_ms: list[float] = field(default_factory=list)
    captions: dict[int, list[int]] = field(default_factory=dict)  # token ids by the request's number

    def add(self, number: int, token_ids: list[int], sent: float, first: float, ended: float) -> None:
        """One caption; times in s. A system that shows nothing before the end has `first` equal to `ended`."""
        self.captions[number] = token_ids
        self.tokens += len(token_ids)
        self.ttft_ms.append((first - sent) * 1000)
        if len(token_ids) > 1 and first < ended:
            self.tpot_ms.append((ended - first) / (len(token_ids) - 1) * 1000)

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds

    @property
    def captions_per_s(self) -> float:
        """Whole captions a second."""
        return len(self.captions) / self.seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least `percent` % of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-len(ordered) * percent // 100) - 1, 0)]


def summary(rounds: Sequence[Round]) -> dict[str, float | bool | int | None]:
    """Medians over rounds, percentiles over all their captions, and the spread of the throughput.

    Where a round was cut, those who still waited are counted with the time they had waited, so a percentile is at
    least what it says and `ttft_is_at_least` is true.
    """
    rates = [one.tokens_per_s for one in rounds]
    waited = [ms for one in rounds for ms in [*one.ttft_ms, *one.unserved_ms]]
    tpot = [ms for one in rounds for ms in one.tpot_ms]
    rate = statistics.median(rates)
    return {
        "tokens_per_s": round(rate, 2),
        "tokens_per_s_low": round(min(rates), 2),
        "tokens_per_s_high": round(max(rates), 2),
        "captions_per_s": round(statistics.median(one.captions_per_s for one in rounds), 3),
        "ms_per_token": round(1000 / rate, 2),
        "ttft_p50_ms": round(percentile(waited, 50), 1),
        "ttft_p99_ms": round(percentile(waited, 99), 1),
        "ttft_is_at_least": any(one.unserved_ms for one in rounds),
        "tpot_p50_ms": round(statistics.median(tpot), 2) if tpot else None,
        "captions": sum(len(one.captions) for one in rounds),
        "rounds": len(rounds),
    }


def machine() -> dict[str, str | int]:
    """Where this runs."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if info.is_file() and names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
