"""Descriptions that a camera or a program writes into every image. They are not captions."""

from __future__ import annotations

import re

_BOILERPLATE = re.compile(
    r"""(\w+\ )*digital\ (still\ )?camera   # OLYMPUS, MINOLTA, KONICA MINOLTA, SAMSUNG, KODAK
      | sony\ dsc
      | samsung\ camera\ pictures?
      | (.*[\\/])?dcim[\\/].*               # DCIM\100MEDIA\DJI_0042.JPG
      | exif[_\ ]jpeg[_\ ]picture
      | <(digimax|menu)[^>]*>
      | (cof|dav|edf|hdr|mde|oznor|ozedf|ptr|r?hdr|rbsh|sdr|tof)[a-z_]{0,8}   # codes of phones
      | (created\ with\ (the\ )?gimp.*)
      | processed\ with\ \w+\ with\ \w+\ preset
      | default | untitled""",
    re.IGNORECASE | re.VERBOSE,
)


def own_words(text: str | None) -> str | None:
    """Return a description without blanks at its ends; None if it is missing, blank or boilerplate."""
    text = (text or "").strip("\x00 \t\r\n\v\f\u00a0\ufeff")
    return None if not text or _BOILERPLATE.fullmatch(" ".join(text.split())) else text
