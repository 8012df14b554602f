"""Consensus decoding (minimum Bayes risk): sample several captions, and keep the one that the others support most.

What a model is sure of is in most of its samples, and what it invents is in few. This module knows token ids. The rows
are sampled like those of any other caption.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class Candidates:
    """The sampled captions of one request, one per row."""

    def __init__(self, width: int, *, max_tokens: int, stop_ids: Sequence[int]) -> None:
        """Raise ValueError if `width` or `max_tokens` is below 1. `max_tokens` includes the stop id."""
        if width < 1 or max_tokens < 1:
            raise ValueError(f"width {width} and max_tokens {max_tokens} must be at least 1")
        self.width = width
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._captions: list[list[int]] = [[] for _ in range(width)]
        self._logprob_sums = [0.0] * width
        self._stopped = [False] * width
        self._best = 0

    @property
    def best(self) -> list[int]:
        """The chosen caption without its stop id, once `append` has returned True."""
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

    def append(self, tokens: Sequence[int], logprobs: Sequence[float]) -> bool:
        """Take one step's token of each row; return whether all candidates have ended, and one is chosen.

        What a row reads after its end does not count.
        """
        for row, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if self._ended(row):
                continue
            self._logprob_sums[row] += logprob
            if token in self._stop_ids:
                self._stopped[row] = True
            else:
                self._captions[row].append(token)
        if not all(self._ended(row) for row in range(self.width)):
            return False
        self._best = consensus(self._captions)
        return True

    def _ended(self, row: int) -> bool:
        return self._stopped[row] or len(self._captions[row]) >= self._max_tokens
