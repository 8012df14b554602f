"""Decode an image file to RGB pixels, or raise an error that says why it is refused.

Cheap checks run first: the file size, the first bytes, the dimensions in the header, then a full decode. Rotation and
color profiles are applied, transparency is composited, and animations are reduced to one frame; `ImageInfo` reports
this. The module knows the pixel size that a model expects, not the model. A hostile file can take seconds, gigabytes or
the process: `decoder_process.py` limits all three.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pi_heif import register_heif_opener
from PIL import AvifImagePlugin, Image

from captioner.errors import ImageBroken, ImageFormatUnknown, ImageRefused, ImageTooLarge
from captioner.image import side_information, tiles
from captioner.image.colors import Picture, Transform, to_rgb
from captioner.image.dynamic_size import fitted
from captioner.image.formats import NAMES, first_bytes, sniff, unwrap
from captioner.image.limits import MAX_PIXELS, check_dimensions, check_file_size
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo

# Longer images are cropped to this aspect ratio before a resize + center crop: resizing a 2000 : 1 strip takes 400 MB.
MAX_ASPECT_RATIO = 64

# One file occupies one core, as the number of Triton's instances assumes.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

_PLUGINS = {"HEIF": ["AVIF", "HEIF"]}  # a file with the brand mif1 or msf1 may be either
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # the frames of other formats are pages or different photos
_MAX_FRAMES = 32
_FLAT = 32  # of 255 levels, in each channel
_EXIF_BLOCK = b"Exif\0\0"
_MAX_EXIF_BLOCKS = 1000  # Pillow takes quadratic time to join them
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

Decoded = tuple[Image.Image, Transform | None, ImageInfo]


def load_pixels(data: bytes, spec: ImageSpec) -> tuple[NDArray[np.uint8], ImageInfo]:
    """Return the RGB pixels of `data`, (height, width, 3) uint8, and the properties of the file.

    `data`: a file's bytes, base64 text, or a data URL. For a tiled model the pixels are a column of tiles, see
    `tiles.cut`; for a model of dynamic size they are whole cells. Raises a subclass of ImageRefused.
    """
    image, transform, info = _decode_checked(unwrap(data))
    resample = Image.Resampling[spec.resample.upper()]
    if spec.longest_px is not None:
        pixels, rows, columns = tiles.cut(image, spec.height, spec.longest_px, resample)
        info = replace(info, grid_rows=rows, grid_columns=columns)
    elif spec.max_pixels is not None:
        rows, columns = fitted(*image.size, spec.height, spec.min_pixels, spec.max_pixels)
        height, width = spec.pixel_size(rows, columns)
        pixels = np.asarray(image.resize((width, height), resample), dtype=np.uint8)
        info = replace(info, grid_rows=rows, grid_columns=columns)
    elif spec.crop:
        pixels = np.asarray(_center_crop(image, spec), dtype=np.uint8)
    else:
        pixels = np.asarray(image.resize((spec.width, spec.height), resample), dtype=np.uint8)
    if transform is not None:  # only now: on all pixels of a 12 MP photo it takes longer than the decoding
        pixels = np.asarray(transform.apply(Image.fromarray(pixels)), dtype=np.uint8)
    return pixels, info


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
    """Return the upright sRGB image in a file's bytes. Raises a subclass of ImageRefused."""
    image, transform, info = _decode_checked(data)
    return image if transform is None else transform.apply(image), info


def _decode_checked(data: bytes) -> Decoded:
    check_file_size(len(data))
    file_format = sniff(data)
    if file_format is None:
        raise ImageFormatUnknown(f"the file begins {first_bytes(data)}; the supported formats are {NAMES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; the limits here are stricter
            try:
                return _decode(data, file_format)
            except (ImageRefused, MemoryError, Image.DecompressionBombError):
                raise
            except Exception:
                pixels_only = side_information.png_without_text(data) if file_format == "PNG" else data
                if len(pixels_only) == len(data):
                    raise
                return _decode(pixels_only, file_format)
    except ImageRefused:
        raise
    except MemoryError:
        raise ImageTooLarge(f"decoding the {file_format} file of {len(data)} bytes takes too much memory") from None
    except Image.DecompressionBombError as error:  # raised by Image.open, before our own check
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise ImageTooLarge(f"{pixels / 1e6:.0f} MP; the limit is {MAX_PIXELS // 10**6} MP") from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        if " object at 0x" in reason:  # the message contains the repr of the file object
            reason = "its header cannot be read"
        raise ImageBroken(f"the {file_format} file of {len(data)} bytes cannot be decoded: {reason}") from error


def _decode(data: bytes, file_format: str) -> Decoded:
    if file_format == "JPEG" and (blocks := data.count(_EXIF_BLOCK)) > _MAX_EXIF_BLOCKS:
        raise ImageBroken(f"the JPEG file has {blocks} EXIF blocks; the limit is {_MAX_EXIF_BLOCKS}")
    if file_format == "GIF":
        data = side_information.gif_without_comments(data)
    with Image.open(io.BytesIO(data), formats=_PLUGINS.get(file_format, [file_format])) as image:
        check_dimensions(*image.size)
        # Pillow rotates a TIFF when it loads it, and then drops the orientation tag.
        rotated = file_format == "TIFF" and _orientation(image) in _UPRIGHT
        image.load()
        check_dimensions(*image.size)  # the picture inside an ICO or HEIF file may differ from the header
        # Pillow counts the pages of a TIFF in quadratic time.
        frames = 1 + getattr(image, "is_animated", False) if file_format == "TIFF" else getattr(image, "n_frames", 1)
        # An HEIF file is rotated by its decoder, which then resets the orientation tag.
        rotated = rotated or image.info.get("original_orientation") in _UPRIGHT
        orientation = _orientation(image)
        (rgb, transform, alpha), frame = _first_picture(image, frames)
    if orientation in _UPRIGHT:  # ImageOps.exif_transpose fails if any other tag is malformed
        rgb, rotated = rgb.transpose(_UPRIGHT[orientation]), True
    return rgb, transform, ImageInfo(image.format or "", rgb.width, rgb.height, frames, rotated, alpha, frame=frame)


def _first_picture(image: Image.Image, frames: int) -> tuple[Picture, int]:
    """Return the first frame that is not one flat color, and its index.

    Only animations are searched, and at most `_MAX_FRAMES` frames and MAX_PIXELS pixels of them. Without such a frame,
    or if a later one is broken, the first frame is returned.
    """
    first = to_rgb(image)
    if image.format in _ANIMATED and _is_flat(first[0]):
        for frame in range(1, min(frames, _MAX_FRAMES, MAX_PIXELS // (image.width * image.height))):
            try:
                image.seek(frame)
                check_dimensions(*image.size)
                later = to_rgb(image)
            except Exception:
                break
            if not _is_flat(later[0]):
                return later, frame
    return first, 0


def _is_flat(rgb: Image.Image) -> bool:
    return all(int(high) - int(low) < _FLAT for low, high in rgb.getextrema())  # type: ignore[misc]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return 1
