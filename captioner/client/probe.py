"""A health check that generates a short caption: an open port does not prove that the model works."""

from __future__ import annotations

import base64

from captioner.client.sync_client import Client

# A 16 × 16 px gradient as PNG, in base64, because the client does not import Pillow.
TINY_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAG0lEQVR42mPkYEAFLPzoAoLoAgLDR4DxO5oAALc0Ahp3QqCzAAAAAElFTkSuQmCC"
)


def probe(address: str, timeout_s: float) -> str:
    """Return a caption of a few tokens. Raises a CaptionerError when no server answers in time."""
    with Client(address, stall_timeout_s=timeout_s) as client:
        return client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text
