"""Beam search for one caption: which beams go on with which tokens, as `generate(num_beams=K, do_sample=False)`.

Knows token ids and next-token logits: no model, no cache, no text. Whoever drives it reorders the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from captioner.engine.sampling import penalise

_NEVER = -1e9  # generate's own: lost in float32 beside it, scores no longer matter


@dataclass(frozen=True)
class _Caption:
    """A caption that ended, or, without any token, the place for one."""

    token_ids: tuple[int, ...] = ()
    stopped: bool = False
    logprob_sum: float = 0.0


class BeamSearch:
    """The search for one request. Scores are float32, as generate's are, so that even its ties come out the same.

    With `width` 1 it is the greedy search that generate makes of one beam.
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
    ) -> None:
        """`max_tokens` counts the stop id, as generate's max_new_tokens. Raises ValueError if it or `width` is < 1."""
        if width < 1 or max_tokens < 1:
            raise ValueError(f"width {width} and max_tokens {max_tokens} must be at least 1")
        self.width = width
        self._prompt_ids = list(prompt_ids)
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        # A beam can end once per stop id; so many candidates always leave K that have not ended.
        self._candidates = max(2, 1 + len(stop_ids)) * width
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping or width == 1
        self._repetition_penalty = repetition_penalty
        self._beams: list[list[int]] = [[] for _ in range(width)]
        self._logprob_sums = [0.0] * width
        self._scores = [0.0] + [_NEVER] * (width - 1)  # all start equal: only the first may be continued
        self._ended = [_Caption()] * width
        self._ended_scores = [_NEVER] * width

    @property
    def best(self) -> list[int]:
        """The best caption that has ended, without its stop id; empty before any has."""
        caption = self._ended[0]
        return list(caption.token_ids[:-1] if caption.stopped else caption.token_ids)

    @property
    def stopped(self) -> bool:
        """Whether the best caption ended by a stop id rather than at `max_tokens`."""
        return self._ended[0].stopped

    @property
    def logprob_sum(self) -> float:
        """The model's own log-probability of the best caption's tokens, the stop id among them, in nats."""
        return self._ended[0].logprob_sum

    @property
    def num_sampled_tokens(self) -> int:
        """The best caption's tokens, the stop id among them."""
        return len(self._ended[0].token_ids)

    def advance(self, logits_KV: torch.Tensor) -> tuple[list[int], list[int]] | None:
        """One step, from next-token logits in beam order: for each new beam the old one it continues, and its token.

        None when the search is over. The first step's rows are all the same, as the beams are.
        """
        scores, parents, tokens, logprobs = self._top(logits_KV)
        length = len(self._beams[0]) + 1
        stopped = [token in self._stop_ids for token in tokens]
        ends = torch.tensor([stop or length == self._max_tokens for stop in stopped])
        taken = ends & (torch.arange(len(tokens)) < self.width)  # the other candidates are there to go on with

        found = [
            _Caption((*self._beams[parent], token), stop, self._logprob_sums[parent] + logprob) if take else _Caption()
            for parent, token, stop, logprob, take in zip(
                parents, tokens, stopped, logprobs, taken.tolist(), strict=True
            )
        ]
        found_scores = scores / length**self._length_penalty + ~taken * _NEVER
        merged = torch.cat([torch.tensor(self._ended_scores), found_scores])
        captions = [*self._ended, *found]
        keep = merged.topk(self.width).indices
        self._ended = [captions[at] for at in keep.tolist()]
        self._ended_scores = merged[keep].tolist()

        running = scores + ends * _NEVER
        keep = running.topk(self.width).indices
        kept = keep.tolist()
        best_running = float(running[keep[0]] / length**self._length_penalty)
        self._scores = running[keep].tolist()
        self._beams = [[*self._beams[parents[at]], tokens[at]] for at in kept]
        self._logprob_sums = [self._logprob_sums[parents[at]] + logprobs[at] for at in kept]

        full = all(caption.token_ids for caption in self._ended)
        hopeless = full and not best_running > min(self._ended_scores)
        if hopeless or (full and self._early_stopping) or bool(ends.all()):
            return None
        return [parents[at] for at in kept], [tokens[at] for at in kept]

    def _top(self, logits_KV: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int], list[float]]:
        """The best continuations C of all beams: scores (C,) on the CPU, parents, tokens and log-probabilities."""
        logits_KV = logits_KV.float()
        vocabulary = logits_KV.shape[-1]
        own_KV = logits_KV.log_softmax(-1)
        scores_KV = logits_KV if self.width == 1 else own_KV  # what the greedy search penalises and compares
        if self._repetition_penalty != 1:
            written_KL = torch.tensor([self._prompt_ids + beam for beam in self._beams], device=logits_KV.device)
            seen_KV = torch.zeros(self.width, vocabulary + 1, dtype=torch.bool, device=logits_KV.device)
            seen_KV = seen_KV.scatter_(1, written_KL.clamp(max=vocabulary), True)[:, :vocabulary]
            penalty_K = torch.full((self.width,), self._repetition_penalty, device=logits_KV.device)
            scores_KV = penalise(scores_KV, seen_KV, penalty_K)
        if self.width == 1:
            index_C = scores_KV.argmax().view(1)
            scores_C = own_KV.flatten()[index_C]
        else:
            scores_KV = scores_KV + torch.tensor(self._scores, device=logits_KV.device)[:, None]
            scores_C, index_C = scores_KV.flatten().topk(min(self._candidates, scores_KV.numel()))
        indices = index_C.tolist()
        logprobs = own_KV.flatten()[index_C].tolist()
        return scores_C.cpu(), [at // vocabulary for at in indices], [at % vocabulary for at in indices], logprobs
