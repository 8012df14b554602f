"""An image file's bytes to RGB pixels, or a refusal that says why.

Everything is checked before it is paid for: the file's size, its first bytes, the header's dimensions, then a full
decode. EXIF rotation is applied, transparency is laid on white, the first frame of an animation is taken, and all of
that is reported in `ImageInfo`. It knows nothing of models but the size of their pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ImageBroken, ImageFormatUnknown, ImageTooLarge, ImageTooSmall
from captioner.image import tiles
from captioner.image.formats import (
    MAX_PIXELS,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    NAMES,
    check_file_size,
    first_bytes,
    sniff,
    unwrap,
)
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo

LONGEST_RATIO = 64  # of a side to the other, before a middle is cut: a resized strip of 2000 : 1 would take 400 MB

_ORIENTATION = 0x0112  # the EXIF tag; its values other than 1:
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_pixels(data: bytes, spec: ImageSpec) -> tuple[NDArray[np.uint8], ImageInfo]:
    """`data` (a file's bytes, base64 text or a data URL) to RGB pixels, (height, width, 3), and what was done.

    For a model that looks at tiles the pixels are as tall as all tiles and the whole together, see `tiles.cut`.
    Raises a child of ImageRefused.
    """
    image, info = decode(unwrap(data))
    if spec.longest_px is not None:
        pixels, rows, columns = tiles.cut(image, spec.height, spec.longest_px, Image.Resampling[spec.resample.upper()])
        return pixels, replace(info, tile_rows=rows, tile_columns=columns)
    if spec.crop:
        return np.asarray(_middle(image, spec), dtype=np.uint8), info
    resized = image.resize((spec.width, spec.height), Image.Resampling[spec.resample.upper()])
    return np.asarray(resized, dtype=np.uint8), info


def _middle(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The middle square, to the pixel as CLIP's own processor cuts it: after the resize, not before."""
    reach = min(image.size) * LONGEST_RATIO
    if max(image.size) > reach:
        x, y = max(image.width - reach, 0) // 2, max(image.height - reach, 0) // 2
        image = image.crop((x, y, image.width - x, image.height - y))
    width, height = (spec.width * side // min(image.size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling[spec.resample.upper()])
    x, y = (width - spec.width) // 2, (height - spec.height) // 2
    return resized.crop((x, y, x + spec.width, y + spec.height))


def decode(data: bytes) -> tuple[Image.Image, ImageInfo]:
    """A file's bytes to an upright RGB image; raises a child of ImageRefused."""
    check_file_size(len(data))
    announced = sniff(data)
    if announced is None:
        raise ImageFormatUnknown(f"the file begins {first_bytes(data)}, which is no format we know; {NAMES} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limits here are stricter
            with Image.open(io.BytesIO(data), formats=[announced]) as image:
                _check_dimensions(*image.size)
                # Pillow turns a TIFF upright while it loads, and forgets that it did.
                turned = announced == "TIFF" and _orientation(image) in _UPRIGHT
                image.load()
                return _upright_rgb(image, turned)
    except (ImageTooLarge, ImageTooSmall, ImageFormatUnknown):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit comes before ours is asked
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise ImageTooLarge(f"{pixels / 1e6:.0f} MP; the limit is {MAX_PIXELS // 10**6} MP") from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken files
        reason = str(error) or type(error).__name__
        if " object at 0x" in reason:  # Pillow names the file object when it cannot identify the file
            reason = "its header cannot be read"
        raise ImageBroken(f"the {announced} file of {len(data)} bytes cannot be decoded: {reason}") from error


def _check_dimensions(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE_PX:
        raise ImageTooSmall(f"{width}x{height} px; each side must be at least {MIN_SIDE_PX} px")
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(f"{width}x{height} px; each side must be at most {MAX_SIDE_PX} px")
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise ImageTooLarge(f"{width}x{height} px is {megapixels:.0f} MP; the limit is {MAX_PIXELS // 10**6} MP")


def _upright_rgb(image: Image.Image, turned: bool) -> tuple[Image.Image, ImageInfo]:
    file_format = image.format or ""
    frames = getattr(image, "n_frames", 1)
    orientation = _orientation(image)
    rotated = turned or orientation in _UPRIGHT
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ImageFormatUnknown(f"pixels of 32 bits a channel (mode {image.mode}) are not read; save it with 8 or 16")
    alpha = image.has_transparency_data
    if alpha:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    rgb = image.convert("RGB")
    if orientation in _UPRIGHT:  # ImageOps.exif_transpose fails where any other tag is odd
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return rgb, ImageInfo(file_format, rgb.width, rgb.height, frames, rotated, alpha)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8; Pillow's own convert() cuts everything above 255 to white."""
    grey = np.asarray(image)
    eight = Image.fromarray((grey.astype(np.uint32) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the grey that is to be seen through
        eight.putalpha(Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8)))
    return eight


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse whole pixels
        return 1
