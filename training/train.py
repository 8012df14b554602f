"""The training loop: batches in, the averaged weights of the best validation out.

It knows what was seen and what is written, no photos and no files but its own state, from which it goes on after a
stop.
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

from training.batches import View, Words, make_batch
from training.dataset import Photo, passes
from training.model import Captioner, Regularisation
from training.tokenizer import CaptionTokenizer

WARM_UP = 0.03  # of the whole training
AVERAGE_DECAY = 0.998  # a step, at most, of the averaged weights
REPORT_STEPS = 50


@dataclass(frozen=True)
class TrainingConfig:
    """One training. It ends after `passes`, or after `minutes` if that comes first; the learning rate follows."""

    passes: float = 10
    minutes: float = math.inf
    batch: int = 8  # photos, with up to three captions each
    learning_rate: float = 1e-3
    backbone_rate: float = 0.1  # of the learning rate, for the backbone's last blocks
    exchange: float = 0.0  # of the photos have a word exchanged in concepts and captions alike
    plain: int = 1  # times a pass shows a photo that has only people's captions
    validations: int = 12
    seed: int = 0
    regularisation: Regularisation = field(default_factory=Regularisation)


@dataclass
class State:
    """How far a training has come."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf


def train(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    photos: list[Photo],
    views: list[View],
    validate: Callable[[Captioner], float],
    settings: TrainingConfig,
    state_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> float:
    """Trains `captioner` in place and leaves it with its best averaged weights. Returns their validation loss.

    views: for each view, what the lower blocks saw in `photos`, in their order. `validate` gives a loss to be small.
    With `state_file`, the state is kept there at each validation, and found again.
    """
    torch.manual_seed(settings.seed)
    chance = random.Random(settings.seed)
    state, regularisation = State(), settings.regularisation
    average = copy.deepcopy(captioner)
    optimizer = _optimizer(captioner, settings)
    best = _trained(captioner)
    if state_file is not None and state_file.is_file():
        saved = torch.load(state_file, weights_only=True)
        captioner.load_state_dict(saved["captioner"], strict=False)
        average.load_state_dict(saved["average"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        state, best = State(**saved["state"]), saved["best"]
        say(f"going on from step {state.step} of {state_file}")
    shown = [row for row, photo in enumerate(photos) for _ in range(1 if photo.written else settings.plain)]
    steps = int(settings.passes * (len(shown) // settings.batch))
    batches = passes(len(shown), settings.batch, settings.seed + state.step)
    words = Words(captioner.encoder.config, photos)
    losses: list[float] = []
    validated = _progress(state, steps, settings)
    before = time.monotonic()
    captioner.train()
    while (progress := _progress(state, steps, settings)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["share"] * _schedule(progress)
        rows = [shown[row] for row in next(batches)]
        look, batch = make_batch(rows, photos, views, tokenizer, words, settings.exchange, chance)
        loss, naming = captioner.losses(look, batch, regularisation)
        optimizer.zero_grad()
        (loss + regularisation.naming * naming).backward()
        torch.nn.utils.clip_grad_norm_(captioner.trained_parameters(), 1.0)
        optimizer.step()
        _follow(average, captioner, state.step)
        losses.append(loss.item())
        now = time.monotonic()
        state.step, state.seconds, before = state.step + 1, state.seconds + now - before, now
        progress = _progress(state, steps, settings)
        if state.step % REPORT_STEPS == 0:
            say(_report(state, losses[-REPORT_STEPS:], progress, settings))
        if progress >= 1 or progress - validated >= 1 / settings.validations:
            validated = progress
            found = validate(average)
            better = found < state.best_loss
            if better:
                state.best_loss, best = found, _trained(average)
            say(f"step {state.step}  validation {found:.3f}{' (best)' if better else ''}")
            if state_file is not None:
                _save(state_file, captioner, average, optimizer, state, best)
            before = time.monotonic()
    captioner.load_state_dict(best, strict=False)
    captioner.eval()
    return state.best_loss


def _optimizer(captioner: Captioner, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; biases, norms and the like do not decay, the backbone learns at a rate of its own."""
    groups = []
    for share, part in ((settings.backbone_rate, True), (1.0, False)):
        own = [
            parameter
            for name, parameter in captioner.named_parameters()
            if parameter.requires_grad and name.startswith("encoder.backbone.") == part
        ]
        decay = settings.regularisation.weight_decay
        groups.append({"params": [p for p in own if p.ndim >= 2], "weight_decay": decay, "share": share})
        groups.append({"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0, "share": share})
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _report(state: State, losses: list[float], progress: float, settings: TrainingConfig) -> str:
    speed = state.step * settings.batch / state.seconds
    left = state.seconds * (1 / progress - 1) / 60
    return f"step {state.step}  loss {sum(losses) / len(losses):.3f}  {speed:.1f} photos/s  {left:.1f} min left"


def _progress(state: State, steps: int, settings: TrainingConfig) -> float:
    return max(state.step / steps, state.seconds / 60 / settings.minutes)


@torch.no_grad()
def _follow(average: Captioner, captioner: Captioner, step: int) -> None:
    """Moves the averaged weights towards the trained ones; quickly at first, when these are worth little."""
    share = 1 - min(AVERAGE_DECAY, (1 + step) / (10 + step))
    for slow, fast in zip(average.trained_parameters(), captioner.trained_parameters(), strict=True):
        slow.lerp_(fast, share)


def _schedule(progress: float) -> float:
    """Warm-up, then a cosine to nothing."""
    return min(progress / WARM_UP + 0.01, 1) * 0.5 * (1 + math.cos(math.pi * progress))


def _trained(captioner: Captioner) -> dict[str, torch.Tensor]:
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
            "captioner": _trained(captioner),
            "average": _trained(average),
            "optimizer": optimizer.state_dict(),
            "state": vars(state),
            "best": best,
        },
        part,
    )
    part.rename(path)
