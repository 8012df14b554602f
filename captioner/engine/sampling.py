"""Logits to a token, with transformers' own logits processors in transformers' order."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.engine.sequence import Sampling, Sequence


def processors(sampling: Sampling) -> LogitsProcessorList:
    """The chain that `generate()` would build for these values."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        if sampling.temperature != 1.0:
            # Below this, logits overflow and no token can be drawn; the likeliest already has all the probability.
            chain.append(TemperatureLogitsWarper(max(sampling.temperature, 1e-30)))
        if sampling.top_k > 0:
            chain.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            chain.append(TopPLogitsWarper(sampling.top_p))
    return chain


def pick(logits_NV: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """The next token of each row. Adds its log-probability (before any processor) to the sequence.

    A row's draw depends on its own seed alone, never on who shares the batch.
    """
    logits_NV = logits_NV.float()
    tokens = [_pick_row(logits_NV[row : row + 1], sequence) for row, sequence in enumerate(sequences)]
    logprobs = logits_NV.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]  # (N,)
    for sequence, logprob in zip(sequences, logprobs.tolist(), strict=True):
        sequence.logprob_sum += logprob
        sequence.picked += 1
    return tokens


def _pick_row(logits_1V: torch.Tensor, sequence: Sequence) -> int:
    sampling = sequence.sampling
    if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
        return int(logits_1V.argmax())
    written = torch.tensor([sequence.prompt_ids + sequence.token_ids], device=logits_1V.device)
    scores = processors(sampling)(written, logits_1V.clone())  # type: ignore[arg-type]  # asks for LongTensor, which nothing makes
    if sampling.temperature == 0:
        return int(scores.argmax())
    if sequence.generator is None:
        sequence.generator = torch.Generator().manual_seed(sampling.seed)
    return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=sequence.generator))
