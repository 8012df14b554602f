"""One caption being decoded: everything the engine knows of it, and nothing it keeps afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

FinishReason = Literal["stop", "length", "deadline", "cancelled", "failed"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


def _ignore(_: object) -> None:
    """Nobody listens."""


@dataclass(eq=False)
class Sequence:
    """A request inside the engine. `deadline` is on time.monotonic()'s clock, in s.

    `on_token` gets each token id of the caption, `on_finish` the reason, once; both are called on the decode thread
    and must not block. `error` says what failed.
    """

    prompt_ids: list[int]
    sampling: Sampling
    max_tokens: int
    on_token: Callable[[int], None] = _ignore
    on_finish: Callable[[FinishReason], None] = _ignore
    deadline: float = float("inf")
    priority_level: int = 2
    features: torch.Tensor | None = None  # (image tokens, width); dropped once the cache holds them
    token_ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0  # nats, over all tokens picked
    picked: int = 0  # tokens picked, the one that ended the caption among them
    started: float = 0.0  # when a slot was taken
    cancelled: bool = False  # set by any thread, read between steps
    error: BaseException | None = None
    generator: torch.Generator | None = None

    @property
    def length(self) -> int:
        """Cache positions in use before the next step: the prompt and all tokens but the last."""
        return len(self.prompt_ids) + len(self.token_ids) - 1
