"""Logits to tokens, all rows at once: what `generate()` does to each row by itself, bit for bit on the CPU.

Knows tensors only: no requests, no seeds (a row's random number comes from the caller), no stop ids. Shapes depend on
the arguments' shapes alone and nothing is read back to the host, so a CUDA graph can hold all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

# Below this, logits overflow and no token can be drawn; the likeliest already has all the probability.
_COLDEST = 1e-30
_CUT = -float("inf")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class SamplingBatch:
    """How each row is sampled. Numbers are kept in float64: transformers rounds `1 - top_p`, not `top_p`."""

    temperature: torch.Tensor  # (N,), 0 takes the likeliest
    top_k: torch.Tensor  # (N,) long, 0 is off
    top_p: torch.Tensor  # (N,)
    penalty: torch.Tensor  # (N,)
    seen: torch.Tensor  # (N, V) bool: the tokens that are penalised

    @classmethod
    def allocate(cls, slots: int, vocabulary: int, device: torch.device) -> SamplingBatch:
        """Greedy rows that have seen nothing."""

        def numbers(value: float) -> torch.Tensor:
            return torch.full((slots,), value, dtype=torch.float64, device=device)

        return cls(
            temperature=numbers(0.0),
            top_k=torch.zeros(slots, dtype=torch.long, device=device),
            top_p=numbers(1.0),
            penalty=numbers(1.0),
            seen=torch.zeros(slots, vocabulary, dtype=torch.bool, device=device),
        )

    def set(self, row: int, sampling: Sampling, seen_ids: list[int]) -> None:
        """Begins a row. Ids beyond the vocabulary (an image's placeholders, say) cannot be written, nor penalised."""
        self.temperature[row] = sampling.temperature
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.penalty[row] = sampling.repetition_penalty
        self.seen[row] = False
        known = [token for token in seen_ids if token < self.seen.shape[1]]
        self.seen[row, torch.tensor(known, dtype=torch.long, device=self.seen.device)] = True

    def rows(self, n: int) -> SamplingBatch:
        """Views of the first n rows."""
        return SamplingBatch(*(getattr(self, field.name)[:n] for field in fields(self)))

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Overwrites each target row with its source row, as all sources were before; targets must differ."""
        device = self.seen.device
        from_, to = torch.tensor([sources, targets], dtype=torch.long, device=device).unbind()  # (M,), (M,)
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[to] = tensor[from_]


def penalise(logits_NV: torch.Tensor, seen_NV: torch.Tensor, penalty_N: torch.Tensor) -> torch.Tensor:
    """Makes seen tokens less likely, (N, V). A penalty of 1 leaves a row bit-equal."""
    penalty_N1 = penalty_N.to(logits_NV.dtype)[:, None]
    punished_NV = torch.where(logits_NV < 0, logits_NV * penalty_N1, logits_NV / penalty_N1)
    return torch.where(seen_NV, punished_NV, logits_NV)


def warp(
    scores_NV: torch.Tensor, temperature_N: torch.Tensor, top_k_N: torch.Tensor, top_p_N: torch.Tensor
) -> torch.Tensor:
    """Scores by temperature, -inf where top-k, then top-p, cuts a token off: (N, V). Rows of temperature 0 keep 1."""
    vocabulary = scores_NV.shape[-1]
    heat_N = torch.where(temperature_N > 0, temperature_N.clamp(min=_COLDEST), 1.0).to(scores_NV.dtype)
    scores_NV = scores_NV / heat_N[:, None]

    kept_N = torch.where(top_k_N > 0, top_k_N.clamp(max=vocabulary), vocabulary)
    kth_N1 = scores_NV.sort(dim=-1).values.gather(-1, (vocabulary - kept_N)[:, None])
    scores_NV = scores_NV.masked_fill(scores_NV < kth_N1, _CUT)

    # Sorted anew, not the order above masked: torch's sort on the CPU leaves ties in an order that hangs on the rest
    # of the row, and half-precision logits are full of ties. Which of them top-p cuts must be what transformers cuts.
    sorted_NV, order_NV = scores_NV.sort(dim=-1)
    least_N1 = (1 - top_p_N.double()).to(scores_NV.dtype)[:, None]
    cut_NV = (sorted_NV.softmax(-1).cumsum(-1) <= least_N1) & (top_p_N < 1)[:, None]
    cut_NV[:, -1] = False
    return scores_NV.masked_fill(torch.zeros_like(cut_NV).scatter(-1, order_NV, cut_NV), _CUT)


def draw(scores_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """The tokens (N,) that float64 numbers in [0, 1) pick from the softmax: the first to bring the sum above them.

    Rows that hold NaN give token 0 rather than an index outside the vocabulary, which would end the process on CUDA.
    """
    chance_NV = scores_NV.double().softmax(-1)
    # A parallel sum is not quite monotone: without the mask, rounding alone could pick a token of no probability.
    reached_NV = chance_NV.cumsum(-1).masked_fill(chance_NV == 0, -1.0)
    wanted_N = uniform_N.double() * reached_NV.amax(-1)  # below the last sum also for the largest float below 1
    return (reached_NV > wanted_N[:, None]).byte().argmax(-1)


def next_tokens(
    logits_NV: torch.Tensor,
    batch: SamplingBatch,
    uniform_N: torch.Tensor,
    *,
    penalised: bool,
    sampled: bool,
    rows: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's token (N,) and the model's own log-probability of it (N,), float32, before any processor.

    `penalised` and `sampled` say whether any row needs that stage. `rows` are those to be sampled, all if None: on a
    CPU a sort of the vocabulary costs milliseconds a row, too much for greedy neighbours. A list of changing length
    is a changing shape, so inside a CUDA graph, where sorting all rows costs little, it must be None.
    """
    logits_NV = logits_NV.float()
    scores_NV = penalise(logits_NV, batch.seen, batch.penalty) if penalised else logits_NV
    tokens_N = scores_NV.argmax(-1)
    if sampled:
        at = slice(None) if rows is None else torch.tensor(rows, dtype=torch.long, device=logits_NV.device)
        temperature_S = batch.temperature[at]
        warped_SV = warp(scores_NV[at], temperature_S, batch.top_k[at], batch.top_p[at])
        tokens_N[at] = torch.where(temperature_S > 0, draw(warped_SV, uniform_N[at]), tokens_N[at])
    return tokens_N, logits_NV.log_softmax(-1).gather(-1, tokens_N[:, None])[:, 0]
