"""Ray Serve with dynamic batching, on a Ray of its own."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import ray
from PIL import Image
from ray import serve
from starlette.requests import Request

from benchmarks.peers.model import BATCH_WAIT_S, MAX_BATCH, Model

FOLDER, PORT = Path(sys.argv[1]), int(sys.argv[2])


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Captioner:
    """The model, which takes batches."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(2)  # Ray sets one thread for each CPU of an actor
        self.model = Model(FOLDER)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def caption(self, images: list[bytes]) -> list[str]:
        """Caption a batch."""
        return self.model.captions([Image.open(io.BytesIO(image)).convert("RGB") for image in images])

    async def __call__(self, request: Request) -> dict[str, str]:
        """Caption one image, which is the body."""
        return {"caption": await self.caption(await request.body())}


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Captioner.bind())
signal.sigwait({signal.SIGINT, signal.SIGTERM})
serve.shutdown()
ray.shutdown()
