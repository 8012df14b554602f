"""The training loop: batches in, the averaged weights of the best validation out.

It knows grids and captions, no photos and no files but its own state, from which it goes on after a stop.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from training.dataset import LENGTH_DROP, Batch, Photo, draw, pack, passes
from training.features import view_of
from training.model import Captioner, Regularisation
from training.tokenizer import CaptionTokenizer

WARM_UP = 0.03  # of the whole training
AVERAGE_DECAY = 0.998  # a step, at most, of the averaged weights
REPORT_STEPS = 50


class Grids(Protocol):
    """An array of grids, (photos, 81, 1280), as numpy indexes it."""

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """One training. It ends after `passes`, or after `minutes` if that comes first; the learning rate follows."""

    passes: float = 10
    minutes: float = math.inf
    batch: int = 8  # photos, with up to three captions each
    learning_rate: float = 1e-3
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
    views: list[Grids],
    validate: Callable[[Captioner], float],
    settings: Settings,
    state_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> float:
    """Trains `captioner` in place and leaves it with its best averaged weights. Returns their validation loss.

    views: for each view, the grids of `photos` in their order. `validate` gives a loss to be small. With `state_file`,
    the state is kept there at each validation, and found again.
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
    steps = int(settings.passes * (len(photos) // settings.batch))
    batches = passes(len(photos), settings.batch, settings.seed + state.step)
    losses: list[float] = []
    validated = _progress(state, steps, settings)
    before = time.monotonic()
    captioner.train()
    while (progress := _progress(state, steps, settings)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(progress)
        grids, batch = _batch(next(batches), photos, views, tokenizer, chance)
        loss = captioner.loss(grids, batch, regularisation.smoothing, regularisation.unseen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(captioner.trained_parameters(), 1.0)
        optimizer.step()
        _follow(average, captioner, state.step)
        losses.append(loss.item())
        now = time.monotonic()
        state.step, state.seconds, before = state.step + 1, state.seconds + now - before, now
        progress = _progress(state, steps, settings)
        if state.step % REPORT_STEPS == 0:
            speed = state.step * settings.batch / state.seconds
            left = state.seconds * (1 / progress - 1) / 60
            mean = sum(losses[-REPORT_STEPS:]) / len(losses[-REPORT_STEPS:])
            say(f"step {state.step}  loss {mean:.3f}  {speed:.1f} photos/s  {left:.1f} min left")
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


def _optimizer(captioner: Captioner, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; biases, norms and the like do not decay."""
    parameters = captioner.trained_parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.regularisation.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _progress(state: State, steps: int, settings: Settings) -> float:
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


def _batch(
    rows: list[int], photos: list[Photo], views: list[Grids], tokenizer: CaptionTokenizer, chance: random.Random
) -> tuple[torch.Tensor, Batch]:
    chosen = [chance.randrange(len(views)) for _ in rows]
    grids = np.stack([views[view][row] for view, row in zip(chosen, rows, strict=True)])
    captions = [
        draw(photos[row], view_of(photos[row].file, view).mirrored, chance)
        for view, row in zip(chosen, rows, strict=True)
    ]
    return torch.from_numpy(grids).float(), pack(captions, tokenizer, LENGTH_DROP, chance)


def _trained(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in captioner.state_dict().items() if not k.startswith("encoder.backbone.")}


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
