"""The check caption: what the exporter saw a model write of one photo, and whether it still does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from captioner.errors import ArtefactBroken
from captioner.manifest import CHECK_FEATURES, Check, Manifest

CHECK_TOKENS = 24
LEAST_OVERLAP = 0.5  # of words, where rounding may turn a close choice

Request = tuple[list[int], torch.Tensor, int]  # prompt ids, features (image tokens, width), most tokens


def greedy(runner: Runner, stop_ids: tuple[int, ...], requests: Iterable[Request]) -> list[list[int]]:
    """The likeliest tokens of each request, decoded together, on this thread. Raises what the decoder raises."""
    engine = Engine(runner, stop_ids, max_waiting=0)
    sequences = []
    for prompt_ids, features, most in requests:
        sequences.append(Sequence(list(prompt_ids), Sampling(), most, features=features))
        engine.admit()
        engine.submit(sequences[-1])
    while (load := engine.load()).running + load.waiting:
        engine.step()
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return [sequence.token_ids for sequence in sequences]


def check_features(folder: Path) -> torch.Tensor:
    """What the exported encoder made of the check photo, (image tokens, width) float32."""
    try:
        return load_file(folder / CHECK_FEATURES)["features"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtefactBroken(f"{folder / CHECK_FEATURES} cannot be read: {error}") from error


def check_decoder(runner: Runner, manifest: Manifest, folder: Path, *, exact: bool) -> None:
    """Lets the decoder of version `folder` write the check caption from the exporter's features.

    `exact` asks for the same tokens; otherwise, in another precision than the exporter's or on another device, half of
    them. ArtefactBroken has both.
    """
    check = manifest.check
    if check is None:
        return
    most = min(CHECK_TOKENS, manifest.context_tokens - len(check.prompt_ids))
    request = (list(check.prompt_ids), check_features(folder), most)
    try:
        (found,) = greedy(runner, manifest.stop_ids, [request])
    except Exception as error:  # logits that are no numbers, say
        raise ArtefactBroken(f"the check caption fails: {error}") from error
    same = tuple(found) == check.token_ids if exact else overlap(check.token_ids, found) >= LEAST_OVERLAP
    if not same:
        raise ArtefactBroken(f"the check caption has the tokens {found}; the exporter's had {list(check.token_ids)}")


def check_caption(check: Check, found: str) -> None:
    """Compares a served caption of the check photo with the exporter's by its words; ArtefactBroken has both."""
    if overlap(check.caption.split(), found.split()) < LEAST_OVERLAP:
        raise ArtefactBroken(f"the check caption is {found!r}; the exporter's was {check.caption!r}")


def overlap(expected: Iterable[object], found: Iterable[object]) -> float:
    """Twice what two bags share over all that is in them; 1 where both are empty."""
    one, other = Counter(expected), Counter(found)
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 1.0
