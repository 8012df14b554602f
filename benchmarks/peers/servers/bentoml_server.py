"""BentoML with adaptive batching. `bentoml serve` imports this module; the model's folder is in PEER_MODEL."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from PIL.Image import Image

from benchmarks.peers.model import MAX_BATCH, Model

LATENCY_MS = 60_000  # adaptive batching refuses what it expects to take longer


@bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 256})
class Captioner:
    """The model, which takes batches."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ["PEER_MODEL"]))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=LATENCY_MS)
    def caption(self, images: list[Image]) -> list[str]:
        """Caption a batch."""
        return self.model.captions([image.convert("RGB") for image in images])
