"""What the page says of refusals, of a caption's end and of the server."""

from __future__ import annotations

import json
from html import escape

from captioner.errors import (
    CaptionerError,
    DeadlineExceeded,
    ImageBroken,
    ImageFormatUnknown,
    ImageMissing,
    ImageRefused,
    ImageTooLarge,
    ImageTooSmall,
    ParameterRefused,
    PromptTooLong,
    ServerBusy,
    ServerStopping,
    ServerUnreachable,
    StreamStalled,
)
from captioner.wire import Ending, ModelCard
from frontend.page.fields import NAMES

LOOK_S = 5  # how often a page asks which model is served
HEADINGS: dict[type[CaptionerError], str] = {
    ImageMissing: "There is no image to caption.",
    ImageTooLarge: "This image is too large.",
    ImageTooSmall: "This image is too small.",
    ImageFormatUnknown: "This file is no image that can be read.",
    ImageBroken: "This image file is damaged.",
    ImageRefused: "This image cannot be captioned.",
    PromptTooLong: "The prompt is too long.",
    ParameterRefused: "One of the settings does not fit.",
    ServerBusy: "The server is busy.",
    ServerStopping: "The server is stopping.",
    ServerUnreachable: "The server does not answer.",
    StreamStalled: "The server went silent.",
    DeadlineExceeded: "The time was up before the first word.",
    CaptionerError: "The caption failed.",
}
FINISHES: dict[Ending, str] = {
    "stop": "complete",
    "length": "cut at the limit",
    "repetition": "cut where it began to repeat itself",
    "deadline": "cut at the deadline",
}


def for_the_browser() -> str:
    """JSON of what `browser/` says and needs: words by the wire's codes, the advanced fields' names, LOOK_S."""
    headings = {
        code: next(HEADINGS[parent] for parent in kind.__mro__ if parent in HEADINGS)
        for code, kind in CaptionerError.by_code.items()
    }
    return json.dumps({"headings": headings, "finishes": FINISHES, "fields": NAMES, "look_s": LOOK_S})


def server_up(card: ModelCard) -> str:
    """The model that answers; the browser compares `data-served` with what it hears."""
    served = " ".join((card.model, card.revision, card.version, card.device, card.precision))
    return _server("up", f"{card.model} · {card.revision[:7]} · {card.device} {card.precision}", served)


def server_down(error: CaptionerError, address: str) -> str:
    """Nobody answers, and what the page does about it."""
    if isinstance(error, ServerUnreachable):
        reason = f"No captioner server answers at {address}."
    else:
        reason = f"The captioner server at {address} is not ready: {error}"
    return _server("down", f"{reason} This page looks again every {LOOK_S} seconds.")


def _server(state: str, text: str, served: str = "") -> str:
    return f'<p class="server {state}" role="status" data-served="{escape(served)}">{escape(text)}</p>'
