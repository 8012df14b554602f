"""The Python client of a Captioner server: it streams an image's caption as text, over Triton's gRPC protocol.

    from captioner.client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.caption("photo.jpg").text)

Importing this package does not import Pillow, torch or transformers.
"""

from captioner.client.async_client import (
    DEFAULT_ADDRESS,
    DEFAULT_IN_FLIGHT,
    Addresses,
    AsyncClient,
    Captioned,
    ImageSource,
)
from captioner.client.retry import RetryPolicy
from captioner.client.stream import AsyncCaptionStream
from captioner.client.sync_client import CaptionStream, Client
from captioner.wire import Caption, Details, ModelCard

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_IN_FLIGHT",
    "Addresses",
    "AsyncCaptionStream",
    "AsyncClient",
    "Caption",
    "CaptionStream",
    "Captioned",
    "Client",
    "Details",
    "ImageSource",
    "ModelCard",
    "RetryPolicy",
]
