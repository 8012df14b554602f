"""One caption through the HTTP API: whole, as events, or as a streamed chat completion. It never retries."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Endpoint = Literal["whole", "events", "chat"]


class Refused(Exception):
    """An error that the API, or a proxy in front of it, answered. `code` is "" if the body has none."""

    def __init__(self, status: int, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass
class Answer:
    """What arrived so far. `ends` counts final events, and events after one: 1 in a complete answer."""

    text: str = ""
    details: dict[str, Any] | None = None
    ends: int = 0
    pieces: list[str] = field(default_factory=list)


async def _ignore(_: Answer) -> None:
    """Do nothing."""


async def caption(
    http: httpx.AsyncClient,
    endpoint: Endpoint,
    image: bytes,
    answer: Answer,
    on_piece: Callable[[Answer], Awaitable[None]] = _ignore,
    **parameters: Any,
) -> None:
    """Caption `image` into `answer`, which keeps its text when this raises. `on_piece` is awaited after each event.

    Raises Refused for an error, and httpx.HTTPError when the connection breaks or the stream has no end.
    """
    if endpoint == "chat":
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        body: dict[str, Any] = {"json": {"model": "captioner", "messages": messages, "stream": True} | parameters}
        path = "/v1/chat/completions"
    else:
        fields = {name: str(value) for name, value in parameters.items()} | {
            "stream": str(endpoint == "events").lower()
        }
        body, path = {"files": {"image": ("a.jpg", image)}, "data": fields}, "/v1/captions"
    async with http.stream("POST", path, **body) as response:
        if response.status_code != 200:
            raise refusal(response, await response.aread())
        if endpoint == "whole":
            document = json.loads(await response.aread())
            answer.text, answer.details, answer.ends = document["caption"], document["details"], 1
            return
        async for event, data in _events(response):
            _read_event(answer, event, data)
            await on_piece(answer)
    if not answer.ends:
        raise httpx.RemoteProtocolError("the stream ended without its last event")


def refusal(response: httpx.Response, body: bytes) -> Refused:
    """Return the error of a response whose status is not 200."""
    try:
        code = str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):  # of a proxy
        code = ""
    wait = response.headers.get("retry-after")
    return Refused(response.status_code, code, None if wait is None else float(wait))


def _read_event(answer: Answer, event: str, data: str) -> None:
    if data == "[DONE]":
        answer.ends += 1
        return
    document = json.loads(data)
    if "error" in document or event == "error":
        raise Refused(200, document.get("error", document)["code"])
    if answer.ends:
        answer.ends += 1
    answer.details = document.get("details") or document.get("captioner") or answer.details
    answer.ends += event == "done"
    choices = document.get("choices", ())
    piece = document.get("text") or "".join(choice["delta"].get("content", "") for choice in choices)
    if piece:
        answer.pieces.append(piece)
        answer.text += piece


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Yield the type and the data of each server-sent event."""
    event = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, value
        elif not line:
            event = ""
