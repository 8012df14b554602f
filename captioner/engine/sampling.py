"""Logits to tokens for all rows at once; on the CPU, each row gets what `generate()` gives it alone, bit for bit.

It knows tensors only: no requests, no seeds (the caller passes each row's random number), no stop ids. Shapes depend
only on the arguments' shapes and nothing is read back to the host, so a CUDA graph can hold all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from captioner.decoders.rows import RowCopy, upload

# Below this temperature, logits overflow and no token can be drawn; the likeliest already has all the probability.
_MIN_TEMPERATURE = 1e-30
_MASKED = -float("inf")
MAX_NGRAM = 8  # tokens
_NO_TOKEN = -1  # in the history of a row: equal to no token of a vocabulary


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of one request; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # up to MAX_NGRAM; 0 is off
    seed: int = 0

    @property
    def penalises(self) -> bool:
        """Return whether tokens of the text so far change the scores of the next."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram_size > 0


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling parameters of each row, in float64, because transformers rounds `1 - top_p`, not `top_p`."""

    temperature: torch.Tensor  # (N,), 0 is greedy
    top_k: torch.Tensor  # (N,) long, 0 is off
    top_p: torch.Tensor  # (N,)
    penalty: torch.Tensor  # (N,)
    seen: torch.Tensor  # (N, V) bool: the tokens to penalise
    ngram: torch.Tensor  # (N,) long: no sequence of this many tokens may come twice; 0 is off
    history: torch.Tensor  # (N, positions) long: the text of rows with an n-gram size

    @classmethod
    def allocate(cls, slots: int, vocabulary: int, positions: int, device: torch.device) -> SamplingBatch:
        """Return greedy rows without any seen tokens."""

        def numbers(value: float) -> torch.Tensor:
            return torch.full((slots,), value, dtype=torch.float64, device=device)

        return cls(
            temperature=numbers(0.0),
            top_k=torch.zeros(slots, dtype=torch.long, device=device),
            top_p=numbers(1.0),
            penalty=numbers(1.0),
            seen=torch.zeros(slots, vocabulary, dtype=torch.bool, device=device),
            ngram=torch.zeros(slots, dtype=torch.long, device=device),
            history=torch.full((slots, positions), _NO_TOKEN, dtype=torch.long, device=device),
        )

    def set(self, row: int, sampling: Sampling, seen_ids: list[int], start: int = 0) -> None:
        """Start a row, whose text begins with `seen_ids` at position `start`.

        Ids beyond the vocabulary (such as image placeholders) are never generated, so not penalised.
        """
        self.temperature[row].fill_(sampling.temperature)
        self.top_k[row].fill_(sampling.top_k)
        self.top_p[row].fill_(sampling.top_p)
        self.penalty[row].fill_(sampling.repetition_penalty)
        self.seen[row].fill_(False)
        known = [token for token in seen_ids if token < self.seen.shape[1]]
        self.seen[row].index_fill_(0, upload(known, self.seen.device), True)
        self.ngram[row].fill_(sampling.no_repeat_ngram_size)
        if sampling.no_repeat_ngram_size:
            self.history[row].fill_(_NO_TOKEN)
            self.history[row, start : start + len(seen_ids)] = upload(seen_ids, self.history.device)

    def append(self, tokens_N: torch.Tensor, positions_N: torch.Tensor) -> None:
        """Add each row's token, which the row will read at its next position."""
        self.seen.scatter_(1, tokens_N[:, None], True)
        after_N = (positions_N + 1).clamp_(max=self.history.shape[1] - 1)
        self.history.scatter_(1, after_N[:, None], tokens_N[:, None])

    def rows(self, n: int) -> SamplingBatch:
        """Return views of the first n rows."""
        return SamplingBatch(*(getattr(self, field.name)[:n] for field in fields(self)))

    def copy(self, rows: RowCopy) -> None:
        """Copy rows over other rows."""
        for field in fields(self):
            rows(getattr(self, field.name))


def penalise(logits_NV: torch.Tensor, seen_NV: torch.Tensor, penalty_N: torch.Tensor) -> torch.Tensor:
    """Return logits (N, V) with seen tokens made less likely. A penalty of 1 leaves a row bit-identical."""
    penalty_N1 = penalty_N.to(logits_NV.dtype)[:, None]
    penalised_NV = torch.where(logits_NV < 0, logits_NV * penalty_N1, logits_NV / penalty_N1)
    return torch.where(seen_NV, penalised_NV, logits_NV)


def repeated(
    history_NL: torch.Tensor, positions_N: torch.Tensor, ngram_N: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Return which tokens (N, V) would repeat an n-gram of the text, which ends at each row's position."""
    index_L = torch.arange(history_NL.shape[1], device=history_NL.device)
    # An n-gram ends at index i of the text if the tokens before i are the last of the text.
    ends_NL = (index_L <= positions_N[:, None]) & (ngram_N > 0)[:, None]
    for back in range(1, MAX_NGRAM):
        last_N1 = history_NL.gather(1, (positions_N + 1 - back).clamp(min=0)[:, None])
        same_NL = (history_NL.roll(back, 1) == last_N1) & (index_L >= back) & (positions_N[:, None] + 1 >= back)
        ends_NL &= same_NL | (ngram_N <= back)[:, None]
    ends_NL &= history_NL >= 0
    tokens_NL = torch.where(ends_NL, history_NL, vocabulary).clamp_(max=vocabulary)
    found_NV = torch.zeros(len(tokens_NL), vocabulary + 1, dtype=torch.bool, device=tokens_NL.device)
    return found_NV.scatter_(1, tokens_NL, True)[:, :vocabulary]


def processed(logits_NV: torch.Tensor, batch: SamplingBatch, positions_N: torch.Tensor) -> torch.Tensor:
    """Return the scores (N, V) of next tokens after both rules about the text so far."""
    penalised_NV = penalise(logits_NV, batch.seen, batch.penalty)
    repeated_NV = repeated(batch.history, positions_N, batch.ngram, logits_NV.shape[-1])
    return penalised_NV.masked_fill(repeated_NV, _MASKED)


def warp(
    scores_NV: torch.Tensor, temperature_N: torch.Tensor, top_k_N: torch.Tensor, top_p_N: torch.Tensor
) -> torch.Tensor:
    """Return scores (N, V) divided by temperature, -inf where top-k, then top-p, removes a token.

    Rows of temperature 0 are divided by 1.
    """
    vocabulary = scores_NV.shape[-1]
    divisor_N = torch.where(temperature_N > 0, temperature_N.clamp(min=_MIN_TEMPERATURE), 1.0).to(scores_NV.dtype)
    scores_NV = scores_NV / divisor_N[:, None]

    kept_N = torch.where(top_k_N > 0, top_k_N.clamp(max=vocabulary), vocabulary)
    kth_N1 = scores_NV.sort(dim=-1).values.gather(-1, (vocabulary - kept_N)[:, None])
    scores_NV = scores_NV.masked_fill(scores_NV < kth_N1, _MASKED)

    # Sort again instead of masking the order above: on the CPU, torch orders ties depending on the rest of the row, and
    # half-precision logits have many ties. top-p must remove the same ones as in transformers.
    sorted_NV, order_NV = scores_NV.sort(dim=-1)
    removed_mass_N1 = (1 - top_p_N.double()).to(scores_NV.dtype)[:, None]
    cut_NV = (sorted_NV.softmax(-1).cumsum(-1) <= removed_mass_N1) & (top_p_N < 1)[:, None]
    cut_NV[:, -1] = False
    return scores_NV.masked_fill(torch.zeros_like(cut_NV).scatter(-1, order_NV, cut_NV), _MASKED)


def draw(scores_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Return the tokens (N,) that float64 numbers in [0, 1) select by inverse transform sampling of the softmax.

    A row with NaN gives token 0: an index outside the vocabulary would end the process on CUDA.
    """
    probability_NV = scores_NV.double().softmax(-1)
    # A parallel sum is not quite monotone: without the mask, rounding could select a token of zero probability.
    cumulative_NV = probability_NV.cumsum(-1).masked_fill(probability_NV == 0, -1.0)
    wanted_N = uniform_N.double() * cumulative_NV.amax(-1)  # below the last sum even for the largest float below 1
    return (cumulative_NV > wanted_N[:, None]).byte().argmax(-1)


def next_tokens(
    logits_NV: torch.Tensor,
    batch: SamplingBatch,
    uniform_N: torch.Tensor,
    positions_N: torch.Tensor,
    *,
    penalised: bool,
    sampled: bool,
    rows: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's token (N,) and the model's own log-probability of it (N,), float32, before any processor.

    `positions_N` are those of the tokens that gave the logits. `penalised` (or with an n-gram size) and `sampled` tell
    whether any row needs that stage. `rows` are the rows to sample, None for all: on a
    CPU, sorting the vocabulary costs milliseconds per row, too much for greedy rows. In a CUDA graph it must be None,
    because the length of the list is a shape; sorting all rows costs little there.
    """
    logits_NV = logits_NV.float()
    scores_NV = processed(logits_NV, batch, positions_N) if penalised else logits_NV
    tokens_N = scores_NV.argmax(-1)
    if sampled:
        index = slice(None) if rows is None else torch.tensor(rows, dtype=torch.long, device=logits_NV.device)
        temperature_S = batch.temperature[index]
        warped_SV = warp(scores_NV[index], temperature_S, batch.top_k[index], batch.top_p[index])
        tokens_N[index] = torch.where(temperature_S > 0, draw(warped_SV, uniform_N[index]), tokens_N[index])
    return tokens_N, logits_NV.log_softmax(-1).gather(-1, tokens_N[:, None])[:, 0]
