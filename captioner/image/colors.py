"""Convert a decoded picture to 8-bit sRGB: color profiles, 16-bit gray, transparency.

It knows pictures, not files.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from captioner.errors import ImageFormatUnknown

MAX_PROFILE_BYTES = 4 * 2**20  # of print profiles, the largest common ones have 2.6 MiB
_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")
_INVISIBLE = 2  # of 255 levels: a profile that changes no color by more is left out
_CONTRAST = 32  # of 255 levels: a picture that differs less from white is hidden on white
_VISIBLE_ALPHA = 16  # of 255
_SAMPLE_PX = 512  # of each side
_HIDDEN_SHARE = 0.99  # of the visible pixels


Transform = ImageCms.ImageCmsTransform
Picture = tuple[Image.Image, Transform | None, bool]  # an RGB image, its transform to sRGB, whether it was transparent


def to_rgb(image: Image.Image) -> Picture:
    """Return the picture in RGB without transparency. An opaque RGB picture is still to be transformed to sRGB.

    An embedded color profile is used; a broken one is ignored. Raises ImageFormatUnknown for 32 bits per channel.
    """
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ImageFormatUnknown(f"32 bits per channel (mode {image.mode}) are not supported; use 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        if image.mode == "RGB":
            return image.copy(), _profile_transform(profile, "RGB"), False
        return _srgb(image, profile), None, False
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    if profile:
        gray = image.mode in ("L", "LA", "La")
        alpha = layer.getchannel("A")
        layer = _srgb(layer.convert("L" if gray else "RGB"), profile)
        layer.putalpha(alpha)
    flat = Image.new("RGBA", layer.size, "black" if _white_hides(layer) else "white")
    flat.alpha_composite(layer)
    return flat.convert("RGB"), None, True


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an opaque picture in sRGB. Without a usable profile, RGB and gray count as sRGB."""
    if image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    transform = _profile_transform(profile, image.mode)
    return image.convert("RGB") if transform is None else transform.apply(image)


def _profile_transform(profile: bytes | None, mode: str) -> Transform | None:
    if mode == "LAB" or (profile and len(profile) <= MAX_PROFILE_BYTES):
        return _transform(profile or b"", mode)
    return None


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """Return the transform from a profile's colors to sRGB; None if it is broken or changes no color visibly."""
    try:
        source = _LAB if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[np.newaxis])
    elif mode == "RGB":
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3))
    else:
        return transform
    unchanged = np.asarray(probe.convert("RGB"), dtype=np.int16)
    change = np.abs(np.asarray(transform.apply(probe), dtype=np.int16) - unchanged).max()
    return transform if change > _INVISIBLE else None


def _white_hides(layer: Image.Image) -> bool:
    """Return whether nearly all visible pixels of an RGBA picture vanish on white, and some pixels are transparent."""
    sample = layer.resize((min(layer.width, _SAMPLE_PX), min(layer.height, _SAMPLE_PX)), Image.Resampling.NEAREST)
    alpha = np.asarray(sample)[..., 3]
    visible = alpha >= _VISIBLE_ALPHA
    if alpha.min() == 255 or not visible.any():
        return False
    on_white = Image.new("RGBA", sample.size, "white")
    on_white.alpha_composite(sample)
    hidden = np.asarray(on_white)[..., :3].min(-1) > 255 - _CONTRAST
    return bool(np.count_nonzero(hidden & visible) > _HIDDEN_SHARE * np.count_nonzero(visible))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits. Pillow's convert() clips every value above 255 to white."""
    gray = np.asarray(image)
    converted = Image.fromarray((gray.astype(np.uint32) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the gray value that is transparent
        converted.putalpha(Image.fromarray(np.where(gray == image.info["transparency"], 0, 255).astype(np.uint8)))
    converted.info["icc_profile"] = image.info.get("icc_profile")
    return converted
