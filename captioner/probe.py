"""The smallest real caption: what a health check asks for, because a port that answers proves nothing."""

from __future__ import annotations

import io

from PIL import Image

from captioner.client import Client


def tiny_picture() -> bytes:
    """A PNG of 16 by 16 px."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "PNG")
    return file.getvalue()


def probe(address: str, timeout_s: float) -> str:
    """A caption of a few tokens; raises a CaptionerError where the server gives none."""
    with Client(address, stall_timeout_s=timeout_s) as client:
        return client.caption(tiny_picture(), max_tokens=4, priority_level=1).text
