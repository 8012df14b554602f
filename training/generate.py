"""Generate captions of a split's photos, with the mean log-probability of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from captioner.embedded import FORMS, Form
from captioner.engine.consensus import consensus
from training.batches import LowerFeatures
from training.checkpoint import CANDIDATES, REPETITION_PENALTY
from training.model import Captioner
from training.tokenizer import CaptionTokenizer
from training.validation import BATCH, encode


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
    return {
        form: _generate(captioner, tokenizer, features, tokenizer.prompt(form), CANDIDATES.get(form, 1))
        for form in forms
    }


@torch.inference_mode()
def _generate(
    captioner: Captioner, tokenizer: CaptionTokenizer, features: torch.Tensor, prompt: list[int], candidates: int
) -> list[GeneratedCaption]:
    captions: list[GeneratedCaption] = []
    for start in range(0, len(features), BATCH):
        part = features[start : start + BATCH]
        rows = captioner.generate(part, prompt, repetition_penalty=REPETITION_PENALTY)
        if candidates > 1:
            rows = _consensus(captioner, tokenizer, part, prompt, rows, candidates)
        ids = torch.tensor([prompt + row for row in rows])
        logits = captioner.decoder(input_ids=ids[:, :-1], encoder_hidden_states=part).logits
        chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, len(prompt) - 1 :, 0]
        for row, logprobs in zip(rows, chosen.tolist(), strict=True):
            length = row.index(tokenizer.eos) + 1 if tokenizer.eos in row else len(row)
            captions.append(GeneratedCaption(tokenizer.decode(row), sum(logprobs[:length]) / length))
    return captions


def _consensus(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    features: torch.Tensor,
    prompt: list[int],
    greedy: list[list[int]],
    candidates: int,
) -> list[list[int]]:
    """Return, for each photo, the caption that the others support most: the greedy one or one of the samples."""
    sampled = captioner.generate(
        features,
        prompt,
        do_sample=True,
        top_k=0,
        num_return_sequences=candidates - 1,
        repetition_penalty=REPETITION_PENALTY,
    )
    chosen = []
    for number, row in enumerate(greedy):
        rows = [row, *sampled[number * (candidates - 1) : (number + 1) * (candidates - 1)]]
        captions = [[*each, tokenizer.eos] for each in rows]
        chosen.append(rows[consensus([caption[: caption.index(tokenizer.eos)] for caption in captions])])
    longest = max(map(len, chosen))
    return [[*row, *[tokenizer.eos] * (longest - len(row))] for row in chosen]
