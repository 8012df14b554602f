"""Decode an image file to RGB pixels, or raise an error that says why it is refused.

Cheap checks run first: the file size, the first bytes, the dimensions in the header, then a full decode. EXIF rotation
is applied, transparency is composited on white, and animations are reduced to their first frame; `ImageInfo` reports
all of this. The module knows the pixel size that a model expects, not the model.
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
from captioner.image.formats import NAMES, first_bytes, sniff, unwrap
from captioner.image.limits import MAX_PIXELS, check_dimensions, check_file_size
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo

# Longer images are cropped to this aspect ratio before a resize + center crop: resizing a 2000 : 1 strip takes 400 MB.
MAX_ASPECT_RATIO = 64

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, these are the other values
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
    """Return the RGB pixels of `data`, (height, width, 3) uint8, and the properties of the file.

    `data`: a file's bytes, base64 text, or a data URL. For a tiled model the pixels are a column of tiles, see
    `tiles.cut`. Raises a subclass of ImageRefused.
    """
    image, info = decode(unwrap(data))
    if spec.longest_px is not None:
        pixels, rows, columns = tiles.cut(image, spec.height, spec.longest_px, Image.Resampling[spec.resample.upper()])
        return pixels, replace(info, tile_rows=rows, tile_columns=columns)
    if spec.crop:
        return np.asarray(_center_crop(image, spec), dtype=np.uint8), info
    resized = image.resize((spec.width, spec.height), Image.Resampling[spec.resample.upper()])
    return np.asarray(resized, dtype=np.uint8), info


def _center_crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Resize the shorter side, then crop the center: the order of CLIP's image processor, whose pixels this matches."""
    max_side = min(image.size) * MAX_ASPECT_RATIO
    if max(image.size) > max_side:
        x, y = max(image.width - max_side, 0) // 2, max(image.height - max_side, 0) // 2
        image = image.crop((x, y, image.width - x, image.height - y))
    width, height = (spec.width * side // min(image.size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling[spec.resample.upper()])
    x, y = (width - spec.width) // 2, (height - spec.height) // 2
    return resized.crop((x, y, x + spec.width, y + spec.height))


def decode(data: bytes) -> tuple[Image.Image, ImageInfo]:
    """Return the upright RGB image in a file's bytes. Raises a subclass of ImageRefused."""
    check_file_size(len(data))
    file_format = sniff(data)
    if file_format is None:
        raise ImageFormatUnknown(f"the file begins {first_bytes(data)}; the supported formats are {NAMES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; the limits here are stricter
            with Image.open(io.BytesIO(data), formats=[file_format]) as image:
                check_dimensions(*image.size)
                # Pillow rotates a TIFF upright when it loads it, and then drops the orientation tag.
                already_rotated = file_format == "TIFF" and _orientation(image) in _UPRIGHT
                image.load()
                return _upright_rgb(image, already_rotated)
    except (ImageTooLarge, ImageTooSmall, ImageFormatUnknown):
        raise
    except Image.DecompressionBombError as error:  # raised by Image.open, before our own check
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise ImageTooLarge(f"{pixels / 1e6:.0f} MP; the limit is {MAX_PIXELS // 10**6} MP") from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for broken files
        reason = str(error) or type(error).__name__
        if " object at 0x" in reason:  # the message contains the repr of the file object
            reason = "its header cannot be read"
        raise ImageBroken(f"the {file_format} file of {len(data)} bytes cannot be decoded: {reason}") from error


def _upright_rgb(image: Image.Image, already_rotated: bool) -> tuple[Image.Image, ImageInfo]:
    file_format = image.format or ""
    frames = getattr(image, "n_frames", 1)
    orientation = _orientation(image)
    rotated = already_rotated or orientation in _UPRIGHT
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ImageFormatUnknown(f"32 bits per channel (mode {image.mode}) are not supported; use 8 or 16 bits")
    alpha = image.has_transparency_data
    if alpha:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    rgb = image.convert("RGB")
    if orientation in _UPRIGHT:  # ImageOps.exif_transpose fails if any other tag is malformed
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return rgb, ImageInfo(file_format, rgb.width, rgb.height, frames, rotated, alpha)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits. Pillow's convert() clips every value above 255 to white."""
    gray = np.asarray(image)
    converted = Image.fromarray((gray.astype(np.uint32) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the gray value that is transparent
        converted.putalpha(Image.fromarray(np.where(gray == image.info["transparency"], 0, 255).astype(np.uint8)))
    return converted


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return 1
