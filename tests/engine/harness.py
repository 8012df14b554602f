"""An engine with the tiny real decoder, sequences that record their callbacks, and a clock that tests set."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.rows import RowCopy
from captioner.engine.engine import Engine
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from tests.support import tiny

LONG = 4  # seed of an image with a long caption


class RecordedSequence(Sequence):
    """A sequence that records its callbacks."""

    def __init__(
        self, image: int = 0, prompt_ids: list[int] | None = None, max_tokens: int = 8, **options: Any
    ) -> None:
        self.image = image
        self.received: list[int] = []
        self.reasons: list[FinishReason] = []
        self.done = threading.Event()
        super().__init__(
            prompt_ids or [0, 2],
            options.pop("sampling", Sampling()),
            max_tokens,
            on_token=self.received.append,
            on_finish=self._finished,
            features=tiny.features(image),
            **options,
        )

    def _finished(self, reason: FinishReason) -> None:
        self.reasons.append(reason)
        self.done.set()

    def alone(self, stop: int = tiny.STOP) -> list[int]:
        """Return its tokens without an engine and without a cache."""
        if self.beams is not None:
            options = {"num_beams": self.beams.width, "max_new_tokens": self.max_tokens}
            return tiny.generate(self.image, self.prompt_ids, **options)
        return tiny.greedy(tiny.features(self.image), self.prompt_ids, self.max_tokens, stop)


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FaultyDecoder(CrossAttentionDecoder):
    """The real decoder; the methods named in `fails` raise `error`, by default a RuntimeError."""

    fails: frozenset[str] = frozenset()
    error: Exception | None = None

    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        self._check("prefill")
        super().prefill(row, features, prompt_ids)

    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        self._check("decode")
        return super().decode(ids_B, positions_B, span)

    def copy(self, rows: RowCopy, length: int) -> None:
        self._check("copy")
        super().copy(rows, length)

    def _check(self, method: str) -> None:
        if method in self.fails:
            raise self.error or RuntimeError(f"{method} failed")


def make_engine(
    slots: int = 3,
    max_waiting: int = 50,
    clock: Callable[[], float] = time.monotonic,
    kind: type[CrossAttentionDecoder] = CrossAttentionDecoder,
    stop_ids: tuple[int, ...] = (1, tiny.STOP),
    *,
    async_scheduling: bool = False,
) -> Engine:
    """Return an engine that is not started."""
    runner = tiny.runner(slots, kind, async_scheduling=async_scheduling)
    return Engine(runner, stop_ids, max_waiting=max_waiting, clock=clock)


def make_faulty(slots: int) -> tuple[Engine, FaultyDecoder]:
    """Return an engine and its decoder."""
    engine = make_engine(slots, kind=FaultyDecoder)
    decoder = engine._runner.decoder
    assert isinstance(decoder, FaultyDecoder)
    return engine, decoder


def submit(engine: Engine, *sequences: Sequence) -> None:
    """Admit and queue sequences."""
    for sequence in sequences:
        engine.admit(sequence)
        engine.submit(sequence)


def run(engine: Engine) -> None:
    """Step until no request is left."""
    for _ in range(1000):
        load = engine.load()
        if not load.running + load.waiting:
            return
        engine.step()
    raise AssertionError("the engine still has requests after 1000 steps")


def crowd(rng: random.Random, count: int) -> list[RecordedSequence]:
    """Return requests with random images, prompts, lengths and priorities."""
    return [
        RecordedSequence(
            image=rng.randrange(12),
            prompt_ids=[0, *(rng.randrange(2, 250) for _ in range(rng.randrange(12)))],
            max_tokens=rng.randrange(1, 30),
            priority_level=rng.randrange(1, 4),
        )
        for _ in range(count)
    ]
