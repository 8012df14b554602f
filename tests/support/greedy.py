"""A minimal engine for tests of families: greedy decoding, one new request per step, no queue."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from captioner.artifacts.manifest import Manifest
from captioner.decoders.base import Decoder
from captioner.decoders.rows import RowCopy
from captioner.families.base import Source

torch.set_num_threads(1)  # for tensors this small, more threads only wait for each other

Request = tuple[torch.Tensor, list[int], int]  # features (image tokens, width), prompt ids, max tokens


def greedy_rows(decoder: Decoder, requests: Sequence[Request], stop_ids: Collection[int]) -> list[list[int]]:
    """Return the greedy tokens of each request, including the stop id; request i joins at step i.

    The decoder needs one slot per request. When a row ends, the last row moves into it, as in the engine.
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
                    decoder.copy(RowCopy([last], [row], decoder.device), len(running[last][1]) - 1)
                    running[row] = running[last]
                running.pop()
    return written


def publish(source: Source, model_type: str, folder: Path) -> Manifest:
    """Write the published decoder to a version folder; return its manifest, without files to verify."""
    source.decoder.save_pretrained(folder / "decoder")
    with torch.inference_mode():
        blank = torch.zeros(1, source.image.height, source.image.width, 3, dtype=torch.uint8)
        _, tokens, width = source.vision_encoder(blank).shape
    return source.manifest(family=model_type, model="tiny", revision="0" * 40, feature_shape=(tokens, width), files={})
