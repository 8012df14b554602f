"""What the page says: refusals, details and the server's state, as small pieces of HTML."""

from __future__ import annotations

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
from captioner.wire import Details, Ending, ModelCard

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
    "length": "cut at the token limit",
    "repetition": "cut where it began to repeat itself",
    "deadline": "cut at the deadline",
}


def problem(error: CaptionerError) -> str:
    """A refusal in plain words, its wire code in small print."""
    heading = next(HEADINGS[kind] for kind in type(error).__mro__ if kind in HEADINGS)
    sentence = str(error)
    return (
        f'<div class="problem" role="alert"><strong>{escape(heading)}</strong>'
        f"<span>{escape(sentence[:1].upper() + sentence[1:])}</span><code>{escape(error.code)}</code></div>"
    )


def details_line(details: Details) -> str:
    """How the caption came to be, in one line."""
    times = details.timings_ms
    facts = {
        "model": f"{details.model} {details.revision[:7]}",
        "first token": f"{times.first_token:.0f} ms",
        "total": f"{times.total:.0f} ms",
        "tokens": f"{details.tokens}",
        "finish": FINISHES[details.finish_reason],
        "seed": f"{details.seed}",
    }
    if details.confidence is not None:
        facts["confidence"] = f"{details.confidence:.0%}"
    unsure = '<p class="unsure">Unsure: the main subject may be wrong. Please check this caption.</p>'
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items())
    return f'{unsure if details.unsure else ""}<dl class="facts">{items}</dl>'


def note(text: str) -> str:
    """A passing remark where the details will be."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def server_up(card: ModelCard) -> str:
    """The model that answers."""
    return _server("up", f"{card.model} · {card.revision[:7]} · {card.device} {card.precision}")


def server_down(error: CaptionerError, address: str, retry_s: float) -> str:
    """Nobody answers, and what the page does about it."""
    if isinstance(error, ServerUnreachable):
        reason = f"No captioner server answers at {address} yet."
    else:
        reason = f"The captioner server at {address} is not ready: {error}"
    return _server("down", f"{reason} This page looks again every {retry_s:g} seconds.")


def _server(state: str, text: str) -> str:
    return f'<p class="server {state}" role="status">{escape(text)}</p>'
