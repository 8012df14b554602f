"""From the model's own opinion to the probability that the main subject is right, fitted on held-out photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from captioner.artifacts.manifest import Calibration

BINS = 8
UNSURE_BELOW = 0.6
Floats = NDArray[np.float64]


def fit(mean_logprobs: Floats, right: Floats) -> Calibration:
    """A logistic curve by maximum likelihood, with Platt's smoothed targets; NaN in `right` says nothing."""
    known = ~np.isnan(right)
    x, hits = mean_logprobs[known], right[known]
    targets = np.where(hits == 1, (hits.sum() + 1) / (hits.sum() + 2), 1 / ((1 - hits).sum() + 2))

    x_N, targets_N = torch.tensor(x), torch.tensor(targets)
    curve = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([curve], max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(curve[0] * x_N + curve[1], targets_N)
        loss.backward()
        return loss

    optimizer.step(cost)
    slope, intercept = curve.tolist()
    return Calibration(round(slope, 4), round(intercept, 4), UNSURE_BELOW)


def confidences(calibration: Calibration, mean_logprobs: Floats) -> Floats:
    """Each caption's probability."""
    return np.array([calibration.confidence(x) for x in mean_logprobs])


def bins(confidence: Floats, right: Floats) -> list[tuple[float, float, int]]:
    """Photos in equal shares by confidence: mean confidence, share right, photos."""
    known = ~np.isnan(right)
    order = np.argsort(confidence[known])
    pairs = [(confidence[known][rows], right[known][rows]) for rows in np.array_split(order, BINS)]
    return [(float(sure.mean()), float(hits.mean()), len(hits)) for sure, hits in pairs if len(hits)]


def expected_error(confidence: Floats, right: Floats) -> float:
    """Expected calibration error over those bins."""
    found = bins(confidence, right)
    total = sum(count for _, _, count in found)
    return sum(abs(sure - hits) * count for sure, hits, count in found) / total


def plot(confidence: Floats, right: Floats, path: Path) -> None:
    """The reliability diagram as an SVG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "captioner"  # the same figures give the same file
    from matplotlib import pyplot

    found = bins(confidence, right)
    figure, axes = pyplot.subplots(figsize=(4, 4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
    axes.plot([sure for sure, _, _ in found], [hits for _, hits, _ in found], "o-", color="#2563eb")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="main subject right", aspect="equal")
    axes.set_title(f"{sum(n for _, _, n in found)} photos, error {expected_error(confidence, right):.3f}", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
