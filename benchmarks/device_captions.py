"""A decoder with random weights on a device, and captions that run through it with the time of every token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.seeded import llava
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence

PROMPT_TOKENS = 32  # without the image's


@dataclass(frozen=True)
class RandomDecoder:
    """A decoder with random weights, and the size of one caption."""

    name: str
    model: Any
    image_token_id: int
    image_tokens: int
    new_tokens: int
    copied_bytes: int  # by the copy that measures the bandwidth

    @property
    def prompt_ids(self) -> list[int]:
        """A start token, the image, and text."""
        return [1] + [self.image_token_id] * self.image_tokens + list(range(2, PROMPT_TOKENS))


def random_decoder(name: str, dtype: torch.dtype, device: torch.device) -> RandomDecoder:
    """Return a model with random weights on `device`."""
    size: llava.Size = "published" if name == "joycaption" else "tiny"
    config = llava.config(size)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, use_cache=True)
    tokens = 729 if size == "published" else config.image_seq_length
    new, copied = (128, 2**31) if size == "published" else (8, 2**20)
    return RandomDecoder(name, model, config.image_token_index, tokens, new, copied)


class Captions:
    """`count` captions that start together, with the time of every token on time.perf_counter()'s clock."""

    def __init__(self, made: RandomDecoder, count: int, tokens: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(count)]
        width = made.model.config.hidden_size
        self.sequences = [
            Sequence(
                made.prompt_ids,
                Sampling(),
                tokens,
                on_token=partial(self._on_token, times),
                features=torch.randn(made.image_tokens, width, generator=torch.Generator().manual_seed(number)),
            )
            for number, times in enumerate(self.times)
        ]
        self.sent = 0.0

    @staticmethod
    def _on_token(times: list[float], _: int) -> None:
        times.append(time.perf_counter())

    def run(self, runner: Runner) -> None:
        """Run all captions through a new engine; raise RuntimeError if one fails."""
        engine = Engine(runner, (), max_waiting=len(self.sequences))
        self.sent = time.perf_counter()
        for sequence in self.sequences:
            engine.admit(sequence)
            engine.submit(sequence)
        engine.start()
        engine.close()
        for sequence in self.sequences:
            if len(sequence.token_ids) != sequence.max_tokens:
                raise RuntimeError("a caption failed") from sequence.error

    @property
    def decode_tokens_per_s(self) -> float:
        """The throughput after the last caption has its first token."""
        began, ended = max(times[0] for times in self.times), max(times[-1] for times in self.times)
        return sum(sum(time > began for time in times) for times in self.times) / (ended - began)

    @property
    def ttft_ms(self) -> list[float]:
        """TTFT of each caption."""
        return [(times[0] - self.sent) * 1000 for times in self.times]
