"""What the endpoints share."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.client import AsyncClient
from frontend.model_card_cache import ModelCardCache
from frontend.remote_images import RemoteImages


@dataclass(frozen=True)
class Backend:
    """The client of the captioner servers, the images of requests, the served model and its other names."""

    client: AsyncClient
    images: RemoteImages
    cards: ModelCardCache
    aliases: tuple[str, ...] = ()
