"""The image of an API request: base64 text, a data URL, or an http(s) URL of a host that the operator allows."""

from __future__ import annotations

from captioner.client.image_fetcher import ImageFetcher
from captioner.image.formats import unwrap
from frontend.off_loop import off_loop


class RemoteImages(ImageFetcher):
    """An ImageFetcher for the `image` field of the API."""

    async def read(self, text: str) -> bytes:
        """Return the image file for base64 text, a data URL or an http(s) URL. Raises ImageRefused."""
        if text[:8].lower().startswith(("http://", "https://")):
            return await self.fetch(text)
        return await off_loop(len(text), lambda: unwrap(text.encode()))
