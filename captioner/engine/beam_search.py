"""Beam search of one caption, as `generate(num_beams=K, do_sample=False)`: which beams continue with which tokens.

It knows token ids and next-token logits, no model, no cache, no text. The caller reorders the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from captioner.engine.sampling import penalise, repeated

_MASKED_SCORE = -1e9  # as in generate(): added to a float32 score, it makes that score irrelevant


@dataclass(frozen=True)
class _Hypothesis:
    """A finished caption, or an empty entry without tokens."""

    token_ids: tuple[int, ...] = ()
    stopped: bool = False
    logprob_sum: float = 0.0


class BeamSearch:
    """The search of one request. Scores are float32, as in generate(), so that ties are broken the same way.

    With `width` 1 it is the greedy search that generate() does with one beam.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        width: int,
        max_tokens: int,
        stop_ids: Sequence[int],
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        """Raise ValueError if `width` or `max_tokens` is below 1. `max_tokens` includes the stop id."""
        if width < 1 or max_tokens < 1:
            raise ValueError(f"width {width} and max_tokens {max_tokens} must be at least 1")
        self.width = width
        self._prompt_ids = list(prompt_ids)
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        # Each beam can finish once per stop id, so this many candidates leave at least K unfinished ones.
        self._candidates = max(2, 1 + len(stop_ids)) * width
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping or width == 1
        self._repetition_penalty = repetition_penalty
        self._ngram = no_repeat_ngram_size
        self._beams: list[list[int]] = [[] for _ in range(width)]
        self._logprob_sums = [0.0] * width
        self._scores = [0.0] + [_MASKED_SCORE] * (width - 1)  # the beams start equal: only the first is expanded
        self._finished = [_Hypothesis()] * width  # best first
        self._finished_scores = [_MASKED_SCORE] * width

    @property
    def best(self) -> list[int]:
        """The best finished caption without its stop id; empty before any beam has finished."""
        caption = self._finished[0]
        return list(caption.token_ids[:-1] if caption.stopped else caption.token_ids)

    @property
    def stopped(self) -> bool:
        """Whether the best caption ended with a stop id rather than at `max_tokens`."""
        return self._finished[0].stopped

    @property
    def logprob_sum(self) -> float:
        """The model's own log-probability of the best caption including its stop id, in nats."""
        return self._finished[0].logprob_sum

    @property
    def num_sampled_tokens(self) -> int:
        """Number of tokens of the best caption including its stop id."""
        return len(self._finished[0].token_ids)

    def advance(self, logits_KV: torch.Tensor) -> tuple[list[int], list[int]] | None:
        """Do one step with next-token logits in beam order; return None when the search is over.

        Otherwise return, for each new beam, the old beam that it continues and its new token. All rows of the first
        step are equal, because all beams are.
        """
        scores, parents, tokens, logprobs = self._candidates_of(logits_KV)
        length = len(self._beams[0]) + 1
        stopped = [token in self._stop_ids for token in tokens]
        ends = torch.tensor([stop or length == self._max_tokens for stop in stopped])
        finishing = ends & (torch.arange(len(tokens)) < self.width)  # candidates beyond the first K only continue

        new = [
            _Hypothesis((*self._beams[parent], token), stop, self._logprob_sums[parent] + logprob)
            if finishes
            else _Hypothesis()
            for parent, token, stop, logprob, finishes in zip(
                parents, tokens, stopped, logprobs, finishing.tolist(), strict=True
            )
        ]
        new_scores = scores / length**self._length_penalty + ~finishing * _MASKED_SCORE
        merged = torch.cat([torch.tensor(self._finished_scores), new_scores])
        hypotheses = [*self._finished, *new]
        keep = merged.topk(self.width).indices
        self._finished = [hypotheses[index] for index in keep.tolist()]
        self._finished_scores = merged[keep].tolist()

        running = scores + ends * _MASKED_SCORE
        keep = running.topk(self.width).indices
        kept = keep.tolist()
        best_running = float(running[keep[0]] / length**self._length_penalty)
        self._scores = running[keep].tolist()
        self._beams = [[*self._beams[parents[index]], tokens[index]] for index in kept]
        self._logprob_sums = [self._logprob_sums[parents[index]] + logprobs[index] for index in kept]

        full = all(caption.token_ids for caption in self._finished)
        cannot_improve = full and not best_running > min(self._finished_scores)
        if cannot_improve or (full and self._early_stopping) or bool(ends.all()):
            return None
        return [parents[index] for index in kept], [tokens[index] for index in kept]

    def _candidates_of(self, logits_KV: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int], list[float]]:
        """Return the best C continuations of all beams: scores (C,) on the CPU, parents, tokens, log-probabilities."""
        logits_KV = logits_KV.float()
        vocabulary = logits_KV.shape[-1]
        logprobs_KV = logits_KV.log_softmax(-1)
        scores_KV = logits_KV if self.width == 1 else logprobs_KV  # greedy search penalises and compares logits
        if self._repetition_penalty != 1 or self._ngram:
            written_KL = torch.tensor([self._prompt_ids + beam for beam in self._beams], device=logits_KV.device)
            last_K, ngram_K = (
                torch.full_like(written_KL[:, 0], each) for each in (written_KL.shape[1] - 1, self._ngram)
            )
            seen_KV = torch.zeros(self.width, vocabulary + 1, dtype=torch.bool, device=logits_KV.device)
            seen_KV = seen_KV.scatter_(1, written_KL.clamp(max=vocabulary), True)[:, :vocabulary]
            penalty_K = torch.full((self.width,), self._repetition_penalty, device=logits_KV.device)
            scores_KV = penalise(scores_KV, seen_KV, penalty_K)
            scores_KV = scores_KV.masked_fill(repeated(written_KL, last_K, ngram_K, vocabulary), -float("inf"))
        if self.width == 1:
            index_C = scores_KV.argmax().view(1)
            scores_C = logprobs_KV.flatten()[index_C]
        else:
            scores_KV = scores_KV + torch.tensor(self._scores, device=logits_KV.device)[:, None]
            scores_C, index_C = scores_KV.flatten().topk(min(self._candidates, scores_KV.numel()))
        indices = index_C.tolist()
        logprobs = logprobs_KV.flatten()[index_C].tolist()
        return scores_C.cpu(), [i // vocabulary for i in indices], [i % vocabulary for i in indices], logprobs
