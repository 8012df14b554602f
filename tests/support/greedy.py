"""The smallest engine there can be, for tests of families: greedy, one newcomer a step, no requests and no queue."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.families.base import Source

torch.set_num_threads(1)  # with more, tensors this small only wait for one another

Request = tuple[torch.Tensor, list[int], int]  # features (image tokens, width), prompt ids, most tokens


def greedy_rows(decoder: Decoder, requests: Sequence[Request], stop_ids: Collection[int]) -> list[list[int]]:
    """The likeliest tokens of each request, with the one that ended it; request i joins the running rows at step i.

    The decoder needs a slot for each request. Where a row ends, the last one moves into its place, as in the engine.
    """
    written: list[list[int]] = [[] for _ in requests]
    running: list[tuple[int, list[int]]] = []  # by row: the request, and its prompt and caption so far
    joined = 0
    while joined < len(requests) or running:
        if joined < len(requests):
            features, prompt_ids, _ = requests[joined]
            decoder.prefill(len(running), features, prompt_ids)
            running.append((joined, list(prompt_ids)))
            joined += 1
        ids_B = torch.tensor([ids[-1] for _, ids in running])
        positions_B = torch.tensor([len(ids) - 1 for _, ids in running])
        tokens = decoder.decode(ids_B, positions_B, int(positions_B.max()) + 1).argmax(-1).tolist()
        for row in reversed(range(len(running))):
            request, ids = running[row]
            ids.append(tokens[row])
            written[request].append(tokens[row])
            if tokens[row] in stop_ids or len(written[request]) == requests[request][2]:
                last = len(running) - 1
                if row != last:
                    decoder.copy([last], [row], len(running[last][1]) - 1)
                    running[row] = running[last]
                running.pop()
    return written


def publish(source: Source, model_type: str, folder: Path) -> Manifest:
    """What the exporter leaves in a version folder for the decoder, without files to verify."""
    source.decoder.save_pretrained(folder / "decoder")
    with torch.inference_mode():
        blank = torch.zeros(1, source.image.height, source.image.width, 3, dtype=torch.uint8)
        _, tokens, width = source.vision_encoder(blank).shape
    return source.manifest(family=model_type, model="tiny", revision="0" * 40, feature_shape=(tokens, width), files={})


def pictures(count: int, side_px: int, seed: int = 1) -> torch.Tensor:
    """Noise, (count, side, side, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side_px, side_px, 3), generator=generator, dtype=torch.uint8)
