"""LitServe with its batching. It reads the annotations of its hooks, so they are not strings here."""

import base64
import io
import sys
from pathlib import Path
from typing import Any

import litserve
from PIL import Image

from benchmarks.peers.model import BATCH_WAIT_S, MAX_BATCH, Model


class Captioner(litserve.LitAPI):  # type: ignore[misc]
    """The model behind LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = Model(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, Any]) -> Image.Image:
        """Decode the image."""
        return Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")

    def predict(self, images: list[Image.Image]) -> list[str]:
        """Caption a batch."""
        return self.model.captions(images)

    def encode_response(self, caption: str) -> dict[str, str]:
        """Answer one request."""
        return {"caption": caption}


if __name__ == "__main__":
    litserve.server._MCP_AVAILABLE = False  # 0.2.19 fails where mcp is installed and fastmcp is not
    api = Captioner(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, track_requests=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
