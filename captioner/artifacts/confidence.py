"""Where a caption's `confidence` comes from: the model's mean log-probability through a curve in its manifest.

`training/confidence.py` fits the curve; `captioner/serving/served_model.py` applies it to each caption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """A logistic curve from the mean log-probability to a probability, fitted on held-out photos."""

    slope: float  # per nat of mean log-probability per token
    intercept: float
    unsure_below: float  # captions with a lower confidence are marked as unsure

    def confidence(self, mean_logprob: float) -> float:
        """Return the probability that the caption's main subject is right."""
        return 1 / (1 + math.exp(-min(max(self.slope * mean_logprob + self.intercept, -50), 50)))
