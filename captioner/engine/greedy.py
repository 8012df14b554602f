"""Greedy decoding of a few requests on the calling thread: for self-tests and parity checks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence

Request = tuple[list[int], torch.Tensor, int]  # prompt ids, features, max tokens


def greedy(runner: Runner, stop_ids: tuple[int, ...], requests: Iterable[Request]) -> list[list[int]]:
    """Return the token ids of each request, decoded together. Raises what the decoder raises."""
    engine = Engine(runner, stop_ids, max_waiting=0)
    sequences = []
    for prompt_ids, features, max_tokens in requests:
        sequences.append(Sequence(list(prompt_ids), Sampling(), max_tokens, features=features))
        engine.admit(sequences[-1])
        engine.submit(sequences[-1])
    while (load := engine.load()).running + load.waiting:
        engine.step()
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return [sequence.token_ids for sequence in sequences]
