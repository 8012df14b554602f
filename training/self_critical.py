"""Self-critical training: fine-tune a trained captioner's decoder on a reward of its own sampled captions.

    python -m training.self_critical --data DIR --model FOLDER --out FOLDER

Several captions of each photo are sampled. A caption becomes more likely by as much as its reward (reward.py) exceeds
the mean reward of the photo's other captions. Cross entropy stays in the loss, so that the other forms are not
forgotten. The weights with the best mean reward of the validation photos' greedy captions are kept, and averaged with
those of the start (`--share`): the reward alone ends in captions of two words.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from captioner.embedded import Form
from captioner.embedded.styles import DEFAULT_FORM
from training import checkpoint
from training.backbone_cache import BackboneCache, augmentation
from training.batches import LowerFeatures
from training.confidence import calibrate
from training.dataset import (
    FORM_TOKEN_DROPOUT,
    CaptionBatch,
    Photo,
    index_batches,
    load_photos,
    pack,
    references,
    sample_captions,
)
from training.generate import generate_captions
from training.model import BF16, Captioner
from training.reward import Reward, tag_reward
from training.tokenizer import CaptionTokenizer
from training.validation import encode

SAMPLES = 5  # captions per photo
CROSS_ENTROPY_WEIGHT = 0.3
VALIDATION_MINUTES = 4.0
FORMS: dict[Form, float] = {"short": 0.45, "medium": 0.3, "plain": 0.15, "tags": 0.1}  # probability of each form
ADAM_BETAS = (0.9, 0.98)


def main() -> None:
    """Train, keep the best weights by validation, save them, and calibrate their confidence."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    captioner, tokenizer = checkpoint.load(options.model)
    cache = BackboneCache(options.cache, options.data, captioner.encoder, options.threads)
    photos, val_photos = load_photos(options.data, "train"), load_photos(options.data, "val")
    files = [photo.file for photo in photos]
    views = [encode(captioner, cache.features(files, n), len(photos)).half() for n in range(options.views)]
    val_view = cache.features([photo.file for photo in val_photos], 0)
    reward = Reward(photos)
    decoder = captioner.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=options.learning_rate, betas=ADAM_BETAS, weight_decay=0.01)
    start = copy.deepcopy(decoder.state_dict())
    best_reward, best = -math.inf, start
    started, validated, rewards = time.monotonic(), -math.inf, list[float]()
    for step, rows in enumerate(index_batches(photos, options.batch, options.seed)):
        minutes = (time.monotonic() - started) / 60
        if minutes - validated >= VALIDATION_MINUTES or minutes >= options.minutes:
            validated = minutes
            val_reward = _validate(captioner, tokenizer, reward, val_photos, val_view)
            if val_reward > best_reward:
                best_reward, best = val_reward, copy.deepcopy(decoder.state_dict())
            print(
                f"{minutes:.1f} min, step {step}: reward of samples {np.mean(rewards[-50:] or [0]):.3f}, "
                f"of validation captions {val_reward:.3f}",
                flush=True,
            )
        if minutes >= options.minutes:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, minutes / options.minutes)
        view = rng.randrange(len(views))
        features = views[view][rows].float()
        batch = [photos[row] for row in rows]
        form = rng.choices(list(FORMS), list(FORMS.values()))[0]
        policy_loss, mean_reward = _policy_loss(captioner, tokenizer, reward, batch, features, form)
        captions = [sample_captions(photo, augmentation(photo.file, view).mirrored, rng) for photo in batch]
        cross_entropy = _cross_entropy(captioner, features, pack(captions, tokenizer, FORM_TOKEN_DROPOUT, rng))
        optimizer.zero_grad()
        (policy_loss + CROSS_ENTROPY_WEIGHT * cross_entropy).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        rewards.append(mean_reward)
    decoder.load_state_dict({name: torch.lerp(start[name], best[name], options.share) for name in best})
    checkpoint.save(options.out, captioner.eval(), tokenizer)
    calibrate(options.out, val_photos, val_view)


def _schedule(step: int, progress: float) -> float:
    """Return the factor of the learning rate: 50 steps of warm-up, cosine decay to 0."""
    return min(1, step / 50 + 0.02) * 0.5 * (1 + math.cos(math.pi * progress))


def _policy_loss(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    reward: Reward,
    photos: list[Photo],
    features: torch.Tensor,
    form: Form,
) -> tuple[torch.Tensor, float]:
    """Return the REINFORCE loss of samples, with the photo's other samples as baseline, and the mean reward."""
    captioner.eval()
    prompt = tokenizer.prompt(form)
    rows = captioner.generate(features, prompt, do_sample=True, top_k=0, num_return_sequences=SAMPLES)
    photo_of = [photo for photo in photos for _ in range(SAMPLES)]
    texts = [tokenizer.decode(row) for row in rows]
    if form == "tags":
        values = [tag_reward(text, references(photo)) for text, photo in zip(texts, photo_of, strict=True)]
    else:
        values = list(reward(texts, photo_of))
    rewards = torch.tensor(values).float().view(-1, SAMPLES)
    advantage = (rewards - (rewards.sum(1, keepdim=True) - rewards) / (SAMPLES - 1)).flatten()
    ids = torch.tensor([prompt + row for row in rows])
    new = ids[:, len(prompt) :]
    # The first EOS counts; the padding after it does not.
    counted = (new == tokenizer.eos).cumsum(1) - (new == tokenizer.eos).long() == 0
    captioner.train()
    with BF16:
        logits = captioner.decoder(
            input_ids=ids[:, :-1], encoder_hidden_states=features.repeat_interleave(SAMPLES, 0)
        ).logits[:, len(prompt) - 1 :]
    logprobs = logits.float().log_softmax(-1).gather(2, new[..., None])[..., 0]
    return -(advantage[:, None] * logprobs * counted).sum() / counted.sum(), float(rewards.mean())


def _cross_entropy(captioner: Captioner, features: torch.Tensor, captions: CaptionBatch) -> torch.Tensor:
    logits = captioner.logits(features, captions)
    counted = captions.labels >= 0
    return F.cross_entropy(logits[counted].float(), captions.labels[counted], label_smoothing=0.1)


def _validate(
    captioner: Captioner, tokenizer: CaptionTokenizer, reward: Reward, photos: list[Photo], view: LowerFeatures
) -> float:
    """Return the mean reward of the greedy captions of the default form."""
    captions = generate_captions(captioner, tokenizer, view, len(photos), (DEFAULT_FORM,))[DEFAULT_FORM]
    return float(reward([caption.text for caption in captions], photos).mean())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.self_critical",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.json and photos/")
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained captioner to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the fine-tuned captioner")
    parser.add_argument("--cache", type=Path, default=Path("build/training"), help="folder of the backbone cache")
    parser.add_argument("--minutes", type=float, default=16, help="duration of the training (default %(default)s)")
    parser.add_argument("--views", type=int, default=4, help="augmented views per photo (default %(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.25, help="of the best weights in their average with the start (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="photos per step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser


if __name__ == "__main__":
    main()
