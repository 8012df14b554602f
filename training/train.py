"""The training loop: return the averaged weights with the lowest validation loss.

It knows features and captions, not photos or files, except its own state file, from which a stopped run resumes.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.batches import LowerFeatures, NounTargets, make_batch
from training.dataset import Photo, epoch_batches, index_batches
from training.model import Captioner, Regularisation
from training.tokenizer import CaptionTokenizer

WARM_UP = 0.03  # share of the run
AVERAGE_DECAY = 0.998  # of the moving average of the weights, per step, at most
LOG_STEPS = 50


@dataclass(frozen=True)
class TrainingConfig:
    """One run. It ends after `epochs` or `minutes`, whichever comes first; the learning rate has decayed by then."""

    epochs: float = 10
    minutes: float = math.inf
    batch: int = 8  # photos, with up to three captions each
    learning_rate: float = 1e-3
    backbone_rate: float = 0.1  # learning rate of the backbone's last blocks, as a share of `learning_rate`
    swap_share: float = 0.0  # share of the photos with one noun swapped in concepts and captions
    validations: int = 12
    seed: int = 0
    regularisation: Regularisation = field(default_factory=Regularisation)


@dataclass
class State:
    """The progress of a run."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf


def train(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    photos: list[Photo],
    views: list[LowerFeatures],
    validate: Callable[[Captioner], float],
    config: TrainingConfig,
    state_file: Path | None = None,
    log: Callable[[str], None] = print,
) -> float:
    """Train `captioner` in place, load its best averaged weights, and return their validation loss.

    Each of `views` has the features of `photos` in the same order. `validate` returns a loss. With `state_file`, the
    state is saved there at each validation, and a run resumes from it.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    state, regularisation = State(), config.regularisation
    average = copy.deepcopy(captioner)
    optimizer = _optimizer(captioner, config)
    best = _trained_state(captioner)
    if state_file is not None and state_file.is_file():
        saved = torch.load(state_file, weights_only=True)
        captioner.load_state_dict(saved["captioner"], strict=False)
        average.load_state_dict(saved["average"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        state, best = State(**saved["state"]), saved["best"]
        log(f"resuming from step {state.step} of {state_file}")
    steps = int(config.epochs * epoch_batches(photos, config.batch))
    batches = index_batches(photos, config.batch, config.seed + state.step)
    targets = NounTargets(captioner.encoder.config, photos)
    losses: list[float] = []
    validated = _progress(state, steps, config)
    before = time.monotonic()
    captioner.train()
    while (progress := _progress(state, steps, config)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group["share"] * _schedule(progress)
        images, captions = make_batch(next(batches), photos, views, tokenizer, targets, config.swap_share, rng)
        loss, noun_loss = captioner.losses(images, captions, regularisation)
        optimizer.zero_grad()
        (loss + regularisation.noun_loss_weight * noun_loss).backward()
        torch.nn.utils.clip_grad_norm_(captioner.trained_parameters(), 1.0)
        optimizer.step()
        _update_average(average, captioner, state.step)
        losses.append(loss.item())
        now = time.monotonic()
        state.step, state.seconds, before = state.step + 1, state.seconds + now - before, now
        progress = _progress(state, steps, config)
        if state.step % LOG_STEPS == 0:
            log(_report(state, losses[-LOG_STEPS:], progress, config))
        if progress >= 1 or progress - validated >= 1 / config.validations:
            validated = progress
            validation_loss = validate(average)
            improved = validation_loss < state.best_loss
            if improved:
                state.best_loss, best = validation_loss, _trained_state(average)
            log(f"step {state.step}  validation {validation_loss:.3f}{' (best)' if improved else ''}")
            if state_file is not None:
                _save(state_file, captioner, average, optimizer, state, best)
            before = time.monotonic()
    captioner.load_state_dict(best, strict=False)
    captioner.eval()
    return state.best_loss


def _optimizer(captioner: Captioner, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW without weight decay for biases and norms, and with its own learning rate for the backbone."""
    groups = []
    for share, in_backbone in ((config.backbone_rate, True), (1.0, False)):
        parameters = [
            parameter
            for name, parameter in captioner.named_parameters()
            if parameter.requires_grad and name.startswith("encoder.backbone.") == in_backbone
        ]
        decay = config.regularisation.weight_decay
        groups.append({"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay, "share": share})
        groups.append({"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "share": share})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _report(state: State, losses: list[float], progress: float, config: TrainingConfig) -> str:
    rate = state.step * config.batch / state.seconds
    left = state.seconds * (1 / progress - 1) / 60
    return f"step {state.step}  loss {sum(losses) / len(losses):.3f}  {rate:.1f} photos/s  {left:.1f} min left"


def _progress(state: State, steps: int, config: TrainingConfig) -> float:
    return max(state.step / steps, state.seconds / 60 / config.minutes)


@torch.no_grad()
def _update_average(average: Captioner, captioner: Captioner, step: int) -> None:
    """Move the averaged weights towards the current ones; by more in the first steps, to forget the initial weights."""
    share = 1 - min(AVERAGE_DECAY, (1 + step) / (10 + step))
    for slow, fast in zip(average.trained_parameters(), captioner.trained_parameters(), strict=True):
        slow.lerp_(fast, share)


def _schedule(progress: float) -> float:
    """Return the factor of the learning rate: linear warm-up, cosine decay to 0."""
    return min(progress / WARM_UP + 0.01, 1) * 0.5 * (1 + math.cos(math.pi * progress))


def _trained_state(captioner: Captioner) -> dict[str, torch.Tensor]:
    encoder = {f"encoder.{key}": value.clone() for key, value in captioner.encoder.trained_state().items()}
    decoder = {f"decoder.{key}": value.clone() for key, value in captioner.decoder.state_dict().items()}
    return encoder | decoder


def _save(
    path: Path,
    captioner: Captioner,
    average: Captioner,
    optimizer: torch.optim.Optimizer,
    state: State,
    best: dict[str, torch.Tensor],
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "captioner": _trained_state(captioner),
            "average": _trained_state(average),
            "optimizer": optimizer.state_dict(),
            "state": vars(state),
            "best": best,
        },
        part,
    )
    part.rename(path)
