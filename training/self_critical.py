"""Self-critical training: a trained captioner's own captions, rewarded for what their references say.

    python -m training.self_critical --data DIR --model FOLDER --out FOLDER

Several captions of a photo are drawn; each is made likelier by how much better it is than the others. The reward is
CIDEr and the things named rightly, less what is invented. Only the decoder learns; some of the loss of the first
training stays in, or other forms would be forgotten. Validation photos' greedy captions choose the weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from captioner.embedded import Form
from training import caption_metrics, checkpoint
from training.__main__ import calibrate
from training.backbone_cache import LowerCache, view_of
from training.dataset import FORM_DROP, Photo, draw, load_photos, pack, passes, texts
from training.generate import write
from training.model import BF16, Captioner
from training.tokenizer import CaptionTokenizer
from training.validation import features

DRAWN = 5  # captions of a photo
KEPT = 0.3  # weight of the first training's loss
CHECK_MINUTES = 2.5
FORMS: dict[Form, float] = {"medium": 0.55, "short": 0.15, "tags": 0.3}  # how often each is drawn
WEIGHTS = {"subject": 0.5, "object precision": 0.5, "invented person": -0.5, "invented animal": -0.5}


class Reward:
    """CIDEr by the training captions' rarities, and the things named."""

    def __init__(self, photos: list[Photo]) -> None:
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        self._scorer: Any = CiderScorer()
        for photo in photos:
            self._scorer += ("", [caption_metrics.plain(text) for text in texts(photo)])
        self._scorer.compute_doc_freq()
        self._documents = len(photos)

    def __call__(self, captions: Sequence[str], photos: Sequence[Photo]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One number a caption."""
        from pycocoevalcap.cider.cider_scorer import cook_refs, cook_test

        cooked = [cook_refs([caption_metrics.plain(text) for text in texts(photo)]) for photo in photos]
        self._scorer.crefs = _Counted(cooked, self._documents)
        self._scorer.ctest = [cook_test(caption_metrics.plain(caption)) for caption in captions]
        reward = np.asarray(self._scorer.compute_cider())
        for name, weight in WEIGHTS.items():
            rate = caption_metrics.BY_PHOTO[name]
            found = np.array([rate(c, texts(p)) for c, p in zip(captions, photos, strict=True)])
            reward = reward + weight * np.nan_to_num(found)
        return reward


def tag_reward(text: str, references: Sequence[str]) -> float:
    """F1 of the tags against the things that references name, less the part of them that is said again."""
    said = [tag.strip() for tag in text.split(",")]
    found = {thing for tag in said for thing in caption_metrics.things(tag)}
    real = {thing for reference in references for thing in caption_metrics.things(reference)}
    again = 1 - len(set(said)) / len(said)
    return 2 * len(found & real) / max(len(found) + len(real), 1) - again


class _Counted(list):  # type: ignore[type-arg]
    """References of a few documents that say they are of many: the scorer takes its corpus's size from them."""

    def __init__(self, values: Sequence[Any], count: int) -> None:
        super().__init__(values)
        self._count = count

    def __len__(self) -> int:
        return self._count


def main() -> None:
    """Trains, keeps the best by validation, calibrates, writes."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    chance = random.Random(options.seed)
    captioner, tokenizer = checkpoint.load(options.model)
    cache = LowerCache(options.cache, options.data, captioner.encoder, options.threads)
    photos, held = load_photos(options.data, "train"), load_photos(options.data, "val")
    views = [
        features(captioner, cache.view([p.file for p in photos], n), len(photos)).half() for n in range(options.views)
    ]
    held_view = cache.view([p.file for p in held], 0)
    reward = Reward(photos)
    decoder = captioner.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    best_reward, best = -math.inf, copy.deepcopy(decoder.state_dict())
    started, checked, gained = time.monotonic(), -math.inf, list[float]()
    for step, rows in enumerate(passes(len(photos), options.batch, options.seed)):
        minutes = (time.monotonic() - started) / 60
        if minutes - checked >= CHECK_MINUTES or minutes >= options.minutes:
            checked = minutes
            found = _validate(captioner, tokenizer, reward, held, held_view)
            if found > best_reward:
                best_reward, best = found, copy.deepcopy(decoder.state_dict())
            print(
                f"{minutes:.1f} min, step {step}: drawn {np.mean(gained[-50:] or [0]):.3f}, validation {found:.3f}",
                flush=True,
            )
        if minutes >= options.minutes:
            break
        rate = (
            options.learning_rate * min(1, step / 50 + 0.02) * 0.5 * (1 + math.cos(math.pi * minutes / options.minutes))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        view = chance.randrange(len(views))
        seen = views[view][rows].float()
        form = chance.choices(list(FORMS), list(FORMS.values()))[0]
        loss, mean = _critical(captioner, tokenizer, reward, [photos[row] for row in rows], seen, form)
        drawn = [draw(photos[row], view_of(photos[row].file, view).mirrored, chance) for row in rows]
        kept = _kept(captioner, seen, pack(drawn, tokenizer, FORM_DROP, chance))
        optimizer.zero_grad()
        (loss + KEPT * kept).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        gained.append(mean)
    decoder.load_state_dict(best)
    checkpoint.save(options.out, captioner.eval(), tokenizer)
    calibrate(options.out, held, held_view)


def _critical(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    reward: Reward,
    photos: list[Photo],
    seen: torch.Tensor,
    form: Form,
) -> tuple[torch.Tensor, float]:
    """The loss of drawn captions, each weighed by its advantage over the photo's others, and their mean reward."""
    captioner.eval()
    prompt = tokenizer.prompt(form)
    rows = captioner.write(seen, prompt, do_sample=True, top_k=0, num_return_sequences=DRAWN)
    of = [photo for photo in photos for _ in range(DRAWN)]
    said = [tokenizer.decode(row) for row in rows]
    earned = [tag_reward(text, texts(photo)) for text, photo in zip(said, of, strict=True)] if form == "tags" else None
    rewards = torch.tensor(reward(said, of) if earned is None else earned).float().view(-1, DRAWN)
    advantage = (rewards - (rewards.sum(1, keepdim=True) - rewards) / (DRAWN - 1)).flatten()
    ids = torch.tensor([prompt + row for row in rows])
    written = ids[:, len(prompt) :]
    # A caption's end counts, the padding after it does not.
    before = (written == tokenizer.eos).cumsum(1) - (written == tokenizer.eos).long()
    counts = before == 0
    captioner.train()
    with BF16:
        logits = captioner.decoder(
            input_ids=ids[:, :-1], encoder_hidden_states=seen.repeat_interleave(DRAWN, 0)
        ).logits[:, len(prompt) - 1 :]
    logprobs = logits.float().log_softmax(-1).gather(2, written[..., None])[..., 0]
    return -(advantage[:, None] * logprobs * counts).sum() / counts.sum(), float(rewards.mean())


def _kept(captioner: Captioner, seen: torch.Tensor, batch: Any) -> torch.Tensor:
    logits = captioner.logits(seen, batch)
    learnt = batch.labels >= 0
    return F.cross_entropy(logits[learnt].float(), batch.labels[learnt], label_smoothing=0.1)


def _validate(
    captioner: Captioner, tokenizer: CaptionTokenizer, reward: Reward, photos: list[Photo], view: Any
) -> float:
    written = write(captioner, tokenizer, view, len(photos), ("medium",))["medium"]
    return float(reward([caption.text for caption in written], photos).mean())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.self_critical", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a trained captioner's files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=16)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
