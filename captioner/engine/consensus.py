"""Consensus decoding (minimum Bayes risk): sample several captions, and keep the one that the others support most.

What a model is sure of is in most of its samples, and what it invents is in few. It knows token ids and next-token
logits, no model, no cache, no text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from captioner.engine.sampling import draw, penalise

TEMPERATURE = 1.0  # of the samples, unless the request has its own: the model's own distribution
# Of a token that only another caption has, beside 1 for a token that the other lacks: a token is worth its place from
# 1 / (1 + 0.25) = 80 % of the captions on.
MISSING_WEIGHT = 0.25


def consensus(captions: Sequence[Sequence[int]]) -> int:
    """Return the index of the caption with the smallest expected error if each caption is as likely to be right.

    The error counts tokens that the right caption lacks, and MISSING_WEIGHT for each that only the right caption has.
    The first of equals is chosen, and an empty caption only if all are empty.
    """
    sets = [frozenset(caption) for caption in captions]
    errors = [sum(len(own - other) + MISSING_WEIGHT * len(other - own) for other in sets) for own in sets]
    return min(range(len(sets)), key=lambda number: (not sets[number], errors[number]))


class ConsensusSearch:
    """The candidates of one request, one per row; the first is greedy. The interface is that of BeamSearch."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        width: int,
        max_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = TEMPERATURE,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Raise ValueError if `width` or `max_tokens` is below 1. `max_tokens` includes the stop id."""
        if width < 1 or max_tokens < 1:
            raise ValueError(f"width {width} and max_tokens {max_tokens} must be at least 1")
        self.width = width
        self._prompt_ids = list(prompt_ids)
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._stop_id = min(stop_ids)  # what a finished row reads on
        self._temperature = temperature
        self._repetition_penalty = repetition_penalty
        self._random = random.Random(seed)
        self._captions: list[list[int]] = [[] for _ in range(width)]
        self._logprob_sums = [0.0] * width
        self._stopped = [False] * width
        self._best = 0

    @property
    def best(self) -> list[int]:
        """The chosen caption without its stop id, once `advance` has returned None."""
        return list(self._captions[self._best])

    @property
    def stopped(self) -> bool:
        """Whether the chosen caption ended with a stop id rather than at `max_tokens`."""
        return self._stopped[self._best]

    @property
    def logprob_sum(self) -> float:
        """The model's own log-probability of the chosen caption including its stop id, in nats."""
        return self._logprob_sums[self._best]

    @property
    def num_sampled_tokens(self) -> int:
        """Number of tokens of the chosen caption including its stop id."""
        return len(self._captions[self._best]) + self.stopped

    def advance(self, logits_KV: torch.Tensor) -> tuple[list[int], list[int]] | None:
        """Do one step with next-token logits in row order; return None when all candidates have ended.

        Otherwise return each row's own number and its new token: a candidate never continues another's row.
        """
        logits_KV = logits_KV.float()
        # A number for each row, also for those that have ended: a candidate must not depend on the others' lengths.
        uniform_K = torch.tensor([self._random.random() for _ in range(self.width)], dtype=torch.float64)
        scores_KV = self._penalised(logits_KV)
        tokens_K = draw(scores_KV / self._temperature, uniform_K.to(logits_KV.device))
        tokens_K[0] = scores_KV[0].argmax()
        logprobs = logits_KV.log_softmax(-1).gather(1, tokens_K[:, None])[:, 0].tolist()
        tokens = [self._append(row, *drawn) for row, drawn in enumerate(zip(tokens_K.tolist(), logprobs, strict=True))]
        if all(self._ended(row) for row in range(self.width)):
            self._best = consensus(self._captions)
            return None
        return list(range(self.width)), tokens

    def _append(self, row: int, token: int, logprob: float) -> int:
        """Continue a candidate that has not ended; return the token that its row reads next."""
        if self._ended(row):
            return self._stop_id
        self._logprob_sums[row] += logprob
        if token in self._stop_ids:
            self._stopped[row] = True
        else:
            self._captions[row].append(token)
        return token

    def _ended(self, row: int) -> bool:
        return self._stopped[row] or len(self._captions[row]) >= self._max_tokens

    def _penalised(self, logits_KV: torch.Tensor) -> torch.Tensor:
        """Return the logits with the tokens that each row has read or written made less likely."""
        if self._repetition_penalty == 1:
            return logits_KV
        vocabulary = logits_KV.shape[-1]
        longest = max(map(len, self._captions))
        # Candidates that have ended are padded with an id beyond the vocabulary, where images' placeholders are too.
        read = [[*self._prompt_ids, *ids, *[vocabulary] * (longest - len(ids))] for ids in self._captions]
        read_KL = torch.tensor(read, device=logits_KV.device).clamp(max=vocabulary)
        seen_KV = torch.zeros(self.width, vocabulary + 1, dtype=torch.bool, device=logits_KV.device)
        seen_KV = seen_KV.scatter_(1, read_KL, True)[:, :vocabulary]
        return penalise(
            logits_KV, seen_KV, torch.full((self.width,), self._repetition_penalty, device=logits_KV.device)
        )
