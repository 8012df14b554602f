"""One caption being decoded: everything the engine knows of it, and nothing it keeps afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from captioner.engine.beam_search import BeamSearch
from captioner.engine.sampling import Sampling

FinishReason = Literal["stop", "length", "repetition", "deadline", "cancelled", "failed"]


def _ignore(_: object) -> None:
    """Nobody listens."""


def _never(_: list[int]) -> bool:
    """Nothing is waited for."""
    return False


@dataclass(eq=False)
class Sequence:
    """A request inside the engine. `deadline` is on time.monotonic()'s clock, in s.

    `on_token` gets each token id of the caption, `on_finish` the reason, once; both are called on the decode thread
    and must not block. `is_stop` is asked of the tokens so far, after each. `error` says what failed.
    """

    prompt_ids: list[int]
    sampling: Sampling
    max_tokens: int
    on_token: Callable[[int], None] = _ignore
    on_finish: Callable[[FinishReason], None] = _ignore
    is_stop: Callable[[list[int]], bool] = _never
    repetition_guard: bool = False
    beams: BeamSearch | None = None
    deadline: float = float("inf")
    priority_level: int = 2
    features: torch.Tensor | None = None  # (image tokens, width); dropped once the cache holds them
    token_ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0  # nats, over all tokens picked
    num_sampled_tokens: int = 0  # tokens picked, the one that ended the caption among them
    started: float = 0.0  # when its slots were taken
    cancelled: bool = False  # set by any thread, read between steps
    error: BaseException | None = None
    rows: list[int] = field(default_factory=list)  # of the cache, one a beam; the scheduler's

    def __post_init__(self) -> None:
        self._random = random.Random(self.sampling.seed)

    @property
    def width(self) -> int:
        """Slots it takes."""
        return 1 if self.beams is None else self.beams.width

    def uniform(self) -> float:
        """The next step's random number, in [0, 1): a matter of the seed and of nobody else."""
        return self._random.random() if self.sampling.temperature else 0.0
