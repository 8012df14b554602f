"""The smallest real caption, for health checks: an open port proves nothing."""

from __future__ import annotations

import base64

from captioner.client.sync_client import Client

# A PNG gradient of 16 by 16 px, made once with Pillow: the client does not import Pillow.
TINY_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAG0lEQVR42mPkYEAFLPzoAoLoAgLDR4DxO5oAALc0Ahp3QqCzAAAAAElFTkSuQmCC"
)


def probe(address: str, timeout_s: float) -> str:
    """Return a caption of a few tokens. Raises a CaptionerError when no server answers in time."""
    with Client(address, stall_timeout_s=timeout_s) as client:
        return client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text
