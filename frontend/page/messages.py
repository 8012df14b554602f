"""The page's messages: headings of errors, how a caption ended, the state of the server."""

from __future__ import annotations

import json
from html import escape

from captioner.client import shrink
from captioner.errors import (
    CaptionerError,
    DeadlineExceeded,
    ImageBroken,
    ImageFormatUnknown,
    ImageMissing,
    ImageRefused,
    ImageTooLarge,
    ImageTooSlow,
    ImageTooSmall,
    ParameterRefused,
    PromptTooLong,
    ServerBusy,
    ServerStopping,
    ServerUnreachable,
    StreamStalled,
)
from captioner.image.formats import SUFFIXES, SYSTEM_FOLDERS
from captioner.image.limits import MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX
from captioner.wire import CSV_COLUMNS, MAX_IMAGE_BYTES, FinishReason, ModelCard
from frontend.page.fields import NAMES

POLL_S = 5  # how often a page checks which model is served
HEADINGS: dict[type[CaptionerError], str] = {
    ImageMissing: "There is no image to caption.",
    ImageTooLarge: "This image is too large.",
    ImageTooSmall: "This image is too small.",
    ImageFormatUnknown: "This file is not an image in a supported format.",
    ImageBroken: "This image file is damaged.",
    ImageTooSlow: "This image takes too long to decode.",
    ImageRefused: "This image cannot be captioned.",
    PromptTooLong: "The prompt is too long.",
    ParameterRefused: "A setting is not valid.",
    ServerBusy: "The server is busy.",
    ServerStopping: "The server is stopping.",
    ServerUnreachable: "The server does not answer.",
    StreamStalled: "The server stopped responding.",
    DeadlineExceeded: "The deadline passed before the first word.",
    CaptionerError: "The caption failed.",
}
FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "complete",
    "length": "cut at the length limit",
    "repetition": "cut where it began to repeat itself",
    "deadline": "cut at the deadline",
}


def for_the_browser(*, image_urls: bool) -> str:
    """Return the JSON that `browser/messages.js` reads, so that the scripts share the server's tables.

    `image_urls`: whether the server fetches images by address.
    """
    headings = {
        code: next(HEADINGS[parent] for parent in kind.__mro__ if parent in HEADINGS)
        for code, kind in CaptionerError.by_code.items()
    }
    return json.dumps(
        {
            "headings": headings,
            "finish_reasons": FINISH_REASONS,
            "fields": NAMES,
            "image_suffixes": SUFFIXES,
            "system_folders": SYSTEM_FOLDERS,
            "csv_columns": CSV_COLUMNS,
            "poll_s": POLL_S,
            "image_urls": image_urls,
            "limits": {
                "bytes": MAX_IMAGE_BYTES,
                "side": MAX_SIDE_PX,
                "min_side": MIN_SIDE_PX,
                "pixels": MAX_PIXELS,
                "source_bytes": shrink.MAX_SOURCE_BYTES,
                "source_pixels": shrink.MAX_SOURCE_PIXELS,
                "target": shrink.TARGET_SIDE_PX,
                "quality": shrink.JPEG_QUALITY / 100,
            },
        }
    )


def server_up(card: ModelCard) -> str:
    """Return the HTML that names the served model. The browser compares `data-version` with the card it polls."""
    version = " ".join((card.model, card.revision, card.version, card.device, card.precision))
    return _server("up", f"{card.model} · {card.revision[:7]} · {card.device} {card.precision}", version)


def server_down(error: CaptionerError, address: str) -> str:
    """Return the HTML that says why no model is served."""
    if isinstance(error, ServerUnreachable):
        reason = f"No captioner server answers at {address}."
    else:
        reason = f"The captioner server at {address} is not ready: {error}"
    return _server("down", f"{reason} This page checks again every {POLL_S} seconds.")


def _server(state: str, text: str, version: str = "") -> str:
    return f'<p class="server {state}" role="status" data-version="{escape(version)}">{escape(text)}</p>'
