"""One caption being decoded: everything the engine knows of it. The engine keeps nothing of it afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from captioner.engine.beam_search import BeamSearch
from captioner.engine.consensus import Candidates
from captioner.engine.sampling import Sampling

FinishReason = Literal["stop", "length", "repetition", "deadline", "cancelled", "failed"]


def _no_callback(_: object) -> None:
    """Do nothing."""


def _never_stop(_: list[int]) -> bool:
    """Return False."""
    return False


@dataclass(eq=False)
class Sequence:
    """A request inside the engine. `deadline` is in seconds of time.monotonic().

    The decode thread calls `on_token` with each token id of the caption and `on_finish` once with the reason; neither
    may block. After each token, it calls `is_stop` with all tokens so far. `error` tells why a request failed.
    """

    prompt_ids: list[int]
    sampling: Sampling
    max_tokens: int
    on_token: Callable[[int], None] = _no_callback
    on_finish: Callable[[FinishReason], None] = _no_callback
    is_stop: Callable[[list[int]], bool] = _never_stop
    repetition_guard: bool = False
    beams: BeamSearch | None = None
    candidates: Candidates | None = None
    deadline: float = float("inf")
    priority_level: int = 2
    client_id: str = ""  # requests of one client share its turns
    encoded_ids: int = 0  # of prompt_ids, at the beginning: only an encoder reads them, they are not part of the text
    features: torch.Tensor | None = None  # as `Decoder.prefill` takes them; dropped once the cache holds them
    token_ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0  # nats, over num_sampled_tokens
    num_sampled_tokens: int = 0  # includes the stop id
    started: float = 0.0  # when it got its slots
    cancelled: bool = False  # set by any thread, read between steps
    error: BaseException | None = None
    rows: list[int] = field(default_factory=list)  # cache rows, one per beam or candidate; written by the scheduler
    order: tuple[int, int, int] = (0, 0, 0)  # in the queues; written by the scheduler

    def __post_init__(self) -> None:
        self._random = random.Random(self.sampling.seed)

    @property
    def text_ids(self) -> list[int]:
        """The ids that the caption continues: what penalties of repetition count."""
        return self.prompt_ids[self.encoded_ids :]

    @property
    def width(self) -> int:
        """Number of slots it needs."""
        search = self.beams or self.candidates
        return 1 if search is None else search.width

    def uniform(self) -> float:
        """Return the next step's random number in [0, 1). It depends on the seed alone, not on other requests."""
        return self._random.random() if self.sampling.temperature else 0.0

    def release(self) -> None:
        """Drop the features and callbacks of a finished request: they would keep it, and each other, in memory."""
        self.on_token = self.on_finish = _no_callback
        self.is_stop = _never_stop
        self.features = None
