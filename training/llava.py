"""Form (b), LLaVA's, trained for a time; its captions of the photos, for comparing and for teaching form (a).

    python -m training.llava --data DIR --encoder FOLDER --out FOLDER

The encoder is a trained captioner's and stays as it is; what it sees is taken once. Measured beside form (a) and not
shipped, see README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from captioner.embedded import Form
from training import artefact
from training.dataset import FORM_DROP, Caption, Photo, draw, load_photos, passes
from training.features import LowerCache, view_of
from training.instructed import Instructed, Seen, see
from training.smollm2 import load_smollm2

RATES = {"lora": 3e-4, "prefix": 1e-3}
FORMS: tuple[Form, ...] = ("short", "medium", "plain")
SAVE_MINUTES = 5.0


def main() -> None:
    """Trains form (b) for a time and writes its adapter and its captions of every photo; goes on from a stop."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    captioner, _ = artefact.load(options.encoder)
    cache = LowerCache(options.cache, options.data, captioner.encoder, options.threads)
    photos = {split: load_photos(options.data, split) for split in ("train", "val", "test")}

    def look(split: str, number: int) -> Seen:
        return see(captioner, cache.view([photo.file for photo in photos[split]], number), len(photos[split]))

    views = [look("train", number) for number in range(options.views)]
    texts = [caption.text for photo in photos["train"] for caption in photo.captions]
    model = Instructed(*load_smollm2(), captioner.encoder.config.words, texts)
    options.out.mkdir(parents=True, exist_ok=True)
    train(model, views, photos["train"], options)
    model.eval()
    torch.save(_trained(model), options.out / "adapter.pt")
    captions: dict[str, dict[str, str]] = {}
    for split, those in photos.items():
        seen = views[0] if split == "train" else look(split, 0)
        for form in FORMS:
            written = [t for at in range(0, len(those), 64) for t in model.write(seen[at : at + 64], form)]
            for photo, text in zip(those, written, strict=True):
                captions.setdefault(photo.file, {})[form] = text
    (options.out / "captions.json").write_text(json.dumps(captions, indent=1))


def train(model: Instructed, views: list[Seen], photos: list[Photo], options: argparse.Namespace) -> None:
    """AdamW for `options.minutes`, the learning rate run down by the clock; its state is kept in `options.out`."""
    optimizer, trained = _optimizer(model)
    print(
        f"{sum(p.numel() for p in trained) / 1e6:.2f} million parameters to train, {len(model.kept)} tokens", flush=True
    )
    state, first, before = options.out / "state.pt", 0, 0.0
    if state.exists():
        kept = torch.load(state)
        model.load_state_dict(kept["model"], strict=False)
        optimizer.load_state_dict(kept["optimizer"])
        first, before = kept["step"], kept["minutes"]
    started = saved = time.monotonic()
    losses: list[float] = []
    for step, rows in enumerate(passes(len(photos), options.batch, options.seed)):
        if step < first:
            continue
        minutes = before + (time.monotonic() - started) / 60
        progress = minutes / options.minutes
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * min(progress / 0.04 + 0.02, 1) * 0.5 * (1 + math.cos(math.pi * progress))
        chance = random.Random(options.seed * 1_000_003 + step)
        view = chance.randrange(len(views))
        drawn = [_draw(photos[row], view, chance) for row in rows]
        loss = model.loss(views[view][rows], drawn, 0.05, chance, FORM_DROP)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 9:
            print(
                f"step {step + 1}  pass {(step + 1) * options.batch / len(photos):.2f}  "
                f"loss {np.mean(losses[-10:]):.3f}  {options.minutes - minutes:.1f} min left",
                flush=True,
            )
        if time.monotonic() > saved + SAVE_MINUTES * 60:
            saved = time.monotonic()
            whole = {"model": _trained(model, torch.float32), "optimizer": optimizer.state_dict()}
            torch.save(
                whole | {"step": step + 1, "minutes": before + (saved - started) / 60}, state.with_suffix(".new")
            )
            state.with_suffix(".new").replace(state)


def _trained(model: Instructed, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {k: v.to(dtype) for k, v in state.items() if "lora_" in k or not k.startswith("language.")}


def _draw(photo: Photo, view: int, chance: random.Random) -> list[Caption]:
    return draw(photo, view_of(photo.file, view).mirrored, chance)[:2]


def _optimizer(model: Instructed) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if ("lora_" in name) == (kind == "lora")], "lr": rate, "top": rate}
        for kind, rate in RATES.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98)), [p for _, p in named]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.llava", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="a trained captioner's files, for its encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
