"""Calibrate confidence: from a caption's mean log-probability to the probability that its main subject is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from captioner.artifacts.confidence import Calibration
from captioner.embedded.styles import DEFAULT_FORM
from training import caption_metrics, checkpoint
from training.batches import LowerFeatures
from training.dataset import Photo, references
from training.generate import generate_captions

BINS = 8
UNSURE_BELOW = 0.6
Floats = NDArray[np.float64]


def fit(mean_logprobs: Floats, correct: Floats) -> Calibration:
    """Fit a logistic curve by maximum likelihood, with Platt's smoothed targets; NaN in `correct` is skipped."""
    known = ~np.isnan(correct)
    x, hits = mean_logprobs[known], correct[known]
    targets = np.where(hits == 1, (hits.sum() + 1) / (hits.sum() + 2), 1 / ((1 - hits).sum() + 2))

    x_N, targets_N = torch.tensor(x), torch.tensor(targets)
    curve = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([curve], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        cross_entropy = F.binary_cross_entropy_with_logits(curve[0] * x_N + curve[1], targets_N)
        cross_entropy.backward()
        return cross_entropy

    optimizer.step(loss)
    slope, intercept = curve.tolist()
    return Calibration(round(slope, 4), round(intercept, 4), UNSURE_BELOW)


def calibrate(folder: Path, photos: list[Photo], view: LowerFeatures) -> None:
    """Fit the confidence of a saved captioner on its default captions of held-out photos, and save it in its config."""
    captioner, tokenizer = checkpoint.load(folder)
    captions = generate_captions(captioner, tokenizer, view, len(photos), (DEFAULT_FORM,))[DEFAULT_FORM]
    correct = [
        caption_metrics.subject_correct(caption.text, references(photo))
        for caption, photo in zip(captions, photos, strict=True)
    ]
    mean_logprobs = np.array([caption.mean_logprob for caption in captions])
    checkpoint.save_calibration(folder, fit(mean_logprobs, np.array(correct)))


def confidences(calibration: Calibration, mean_logprobs: Floats) -> Floats:
    """Return the confidence of each caption."""
    return np.array([calibration.confidence(x) for x in mean_logprobs])


def bins(confidence: Floats, correct: Floats) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, photos) of BINS bins with equally many photos, by confidence."""
    known = ~np.isnan(correct)
    order = np.argsort(confidence[known])
    pairs = [(confidence[known][rows], correct[known][rows]) for rows in np.array_split(order, BINS)]
    return [(float(each.mean()), float(hits.mean()), len(hits)) for each, hits in pairs if len(hits)]


def expected_calibration_error(confidence: Floats, correct: Floats) -> float:
    """Return the expected calibration error over `bins`."""
    binned = bins(confidence, correct)
    total = sum(count for _, _, count in binned)
    return sum(abs(mean - accuracy) * count for mean, accuracy, count in binned) / total


def plot_reliability(confidence: Floats, correct: Floats, path: Path) -> None:
    """Write the reliability diagram as an SVG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "captioner"  # so that the same results give the same file
    from matplotlib import pyplot

    binned = bins(confidence, correct)
    error = expected_calibration_error(confidence, correct)
    figure, axes = pyplot.subplots(figsize=(4, 4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
    axes.plot([mean for mean, _, _ in binned], [accuracy for _, accuracy, _ in binned], "o-", color="#2563eb")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="main subject right", aspect="equal")
    axes.set_title(f"{sum(count for _, _, count in binned)} photos, error {error:.3f}", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
