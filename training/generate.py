"""What a model writes of the photos of a split, and how sure it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from captioner.embedded import FORMS, Form
from training.batches import View
from training.checkpoint import GENERATION
from training.model import Captioner
from training.tokenizer import CaptionTokenizer
from training.validation import BATCH, features

WRITING = {key: value for key, value in GENERATION.items() if key != "max_tokens"}


@dataclass(frozen=True)
class Written:
    """One caption. `mean_logprob` is the model's own opinion, in nats a token, as the server gives it."""

    text: str
    mean_logprob: float


def write(
    captioner: Captioner, tokenizer: CaptionTokenizer, view: View, count: int, forms: tuple[Form, ...] = tuple(FORMS)
) -> dict[Form, list[Written]]:
    """Captions of the first `count` photos by form, decoded as the server does by default."""
    seen = features(captioner, view, count)
    return {form: _write(captioner, tokenizer, seen, tokenizer.prompt(form)) for form in forms}


@torch.inference_mode()
def _write(captioner: Captioner, tokenizer: CaptionTokenizer, seen: torch.Tensor, prompt: list[int]) -> list[Written]:
    found: list[Written] = []
    for start in range(0, len(seen), BATCH):
        part = seen[start : start + BATCH]
        rows = captioner.write(part, prompt, **WRITING)
        ids = torch.tensor([prompt + row for row in rows])
        logits = captioner.decoder(input_ids=ids[:, :-1], encoder_hidden_states=part).logits
        chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, len(prompt) - 1 :, 0]
        for row, logprobs in zip(rows, chosen.tolist(), strict=True):
            length = row.index(tokenizer.eos) + 1 if tokenizer.eos in row else len(row)
            found.append(Written(tokenizer.decode(row), sum(logprobs[:length]) / length))
    return found
