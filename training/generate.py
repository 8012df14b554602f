"""Generate captions of a split's photos, with the mean log-probability of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from captioner.embedded import FORMS, Form
from training.batches import LowerFeatures
from training.checkpoint import GENERATION
from training.model import Captioner
from training.tokenizer import CaptionTokenizer
from training.validation import BATCH, encode

GENERATE_OPTIONS = {key: value for key, value in GENERATION.items() if key != "max_tokens"}


@dataclass(frozen=True)
class GeneratedCaption:
    """One caption. `mean_logprob` is in nats per token, as the server reports it."""

    text: str
    mean_logprob: float


def generate_captions(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    view: LowerFeatures,
    count: int,
    forms: tuple[Form, ...] = tuple(FORMS),
) -> dict[Form, list[GeneratedCaption]]:
    """Return captions of the first `count` photos by form, decoded with the server's default options."""
    features = encode(captioner, view, count)
    return {form: _generate(captioner, tokenizer, features, tokenizer.prompt(form)) for form in forms}


@torch.inference_mode()
def _generate(
    captioner: Captioner, tokenizer: CaptionTokenizer, features: torch.Tensor, prompt: list[int]
) -> list[GeneratedCaption]:
    captions: list[GeneratedCaption] = []
    for start in range(0, len(features), BATCH):
        part = features[start : start + BATCH]
        rows = captioner.generate(part, prompt, **GENERATE_OPTIONS)
        ids = torch.tensor([prompt + row for row in rows])
        logits = captioner.decoder(input_ids=ids[:, :-1], encoder_hidden_states=part).logits
        chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, len(prompt) - 1 :, 0]
        for row, logprobs in zip(rows, chosen.tolist(), strict=True):
            length = row.index(tokenizer.eos) + 1 if tokenizer.eos in row else len(row)
            captions.append(GeneratedCaption(tokenizer.decode(row), sum(logprobs[:length]) / length))
    return captions
