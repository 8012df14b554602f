"""Marked images: a picture for each user, told apart by its greedy caption and by its width.

An answer that belongs to another user has another caption, or another width in `details`. `mistake` finds it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any

from PIL import Image

from benchmarks.images import crops
from captioner.client import AsyncClient, ImageSource

FIRST_WIDTH_PX, HEIGHT_PX = 240, 320
SURPLUS = 3 / 2  # pictures whose captions are equal are dropped


@dataclass(frozen=True)
class MarkedImage:
    """A picture with a width and a caption that no other picture has."""

    file: bytes  # JPEG
    width: int  # px
    caption: str = ""

    def unseen(self, rng: Random) -> bytes:
        """Return the file with random bytes after the image's end, so that no feature cache has it."""
        return self.file + rng.randbytes(8)

    def mistake(self, text: str, details: Mapping[str, Any] | None) -> str:
        """Return what is wrong with an answer, or "". A caption that its deadline ended may be incomplete.

        `details` are those of the answer; None if the answer has none.
        """
        cut = details is not None and details["finish_reason"] == "deadline"
        if text != self.caption and not (cut and self.caption.startswith(text.rstrip())):
            return f"the caption is {text!r} and should be {self.caption!r}"
        if details is not None and details["image"]["width"] != self.width:
            return f"the image was {details['image']['width']} px wide and should be {self.width} px"
        return ""


async def marked_images(server: str, count: int, seed: int, **parameters: Any) -> list[MarkedImage]:
    """Return `count` pictures, captioned by an undisturbed server at `server`. Raises ValueError for too few."""
    marked: dict[str, MarkedImage] = {}
    made = list(islice(_pictures(seed), round(count * SURPLUS) + 4))
    by_file: dict[ImageSource, MarkedImage] = {each.file: each for each in made}
    async with AsyncClient(server) as client:
        async for captioned in client.caption_many(by_file, in_flight=16, **parameters):
            if captioned.caption is None:
                raise captioned.error or ValueError("no caption")
            image = by_file[captioned.image]
            marked[captioned.caption.text] = replace(image, caption=captioned.caption.text)
    if len(marked) < count:
        raise ValueError(f"{len(made)} pictures have only {len(marked)} different captions; {count} are needed")
    return sorted(marked.values(), key=lambda each: each.width)[:count]


def _pictures(seed: int) -> Iterator[MarkedImage]:
    for number, crop in enumerate(crops(seed, HEIGHT_PX)):
        picture: Image.Image = Image.open(io.BytesIO(crop))
        if number % 2:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width, file = FIRST_WIDTH_PX + number, io.BytesIO()
        picture.resize((width, HEIGHT_PX)).save(file, "JPEG", quality=90)
        yield MarkedImage(file.getvalue(), width)
