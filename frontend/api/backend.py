"""What the endpoints share."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.client import AsyncClient
from frontend.model_card_cache import ModelCardCache
from frontend.remote_images import RemoteImages
from frontend.uploads import Uploads


@dataclass(frozen=True)
class Backend:
    """The client of the captioner servers, the images of requests, the served model and its other names.

    `uploads` are the files of agents, where the MCP tool is served.
    """

    client: AsyncClient
    images: RemoteImages
    cards: ModelCardCache
    aliases: tuple[str, ...] = ()
    uploads: Uploads | None = None
