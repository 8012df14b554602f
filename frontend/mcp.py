"""The MCP tool for agents. Gradio derives its schema from the function's signature and docstring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from captioner.client import AsyncClient
from frontend.client_identity import client_parameters
from frontend.remote_images import RemoteImages
from frontend.uploads import Uploads

Tool = Callable[[str, str | None, str | None, str | None, int | None, str | None], Awaitable[str]]


def caption_tool(client: AsyncClient, images: RemoteImages, uploads: Uploads) -> Tool:
    """Return the tool `caption_image`, which asks `client`."""

    async def caption_image(
        image: str,
        style: str | None = None,
        length: str | None = None,
        prompt: str | None = None,
        max_characters: int | None = None,
        language: str | None = None,
    ) -> str:
        """
        Describe an image in words.

        Args:
            image: an uploaded file (POST it to /gradio_api/upload as the form field files; the answer is a list with
                its name), an https URL of a host that this server allows, or a data URL (data:image/jpeg;base64,...)
            style: one of the model's styles, such as descriptive, alt-text or tags
            length: short, medium or long
            prompt: sent to the model instead of style and length
            max_characters: maximum length of the caption in characters
            language: the language to write in, such as German or pt-BR, if the model follows instructions
        Returns:
            the caption
        """
        file = uploads.find(image)
        caption = await client.caption(
            await images.read(image) if file is None else file,
            prompt=prompt,
            style=style,
            length=length,
            max_characters=max_characters,
            language=language,
            **client_parameters(),
        )
        return caption.text

    return caption_image
