"""Descriptions that a camera or a program writes into every image. They are not captions."""

from __future__ import annotations

import re

# Whole descriptions only, and codes as the phones spell them: "Coffee", "David" and "A digital camera" are captions.
_BOILERPLATE = re.compile(
    r"""((konica\ )?minolta|samsung|olympus|kodak|fujifilm|casio|vivitar|polaroid|sanyo)\ digital\ (still\ )?camera
      | (?-i:DIGITAL\ (STILL\ )?CAMERA)
      | sony\ dsc
      | samsung\ camera\ pictures?
      | (.*[\\/])?dcim[\\/].*               # DCIM\100MEDIA\DJI_0042.JPG
      | exif[_\ ]jpeg[_\ ]picture
      | <(digimax|menu)[^>]*>
      | (?-i:(cof|dav|edf|r?hdr|mde|oznor|ozedf|ptr|rbsh|sdr|tof)(_[a-z]{1,8}|pl|[A-Z]{2,3})?)   # codes of phones
      | created\ with\ (the\ )?gimp.*
      | processed\ with\ \w+\ with\ \w+\ preset
      | default | untitled""",
    re.IGNORECASE | re.VERBOSE,
)


def own_words(text: str | None) -> str | None:
    """Return a description without blanks at its ends; None if it is missing, blank or boilerplate."""
    text = (text or "").strip("\x00 \t\r\n\v\f\u00a0\ufeff")
    return None if not text or _BOILERPLATE.fullmatch(" ".join(text.split())) else text
