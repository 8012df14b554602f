"""POST /v1/responses: a request of OpenAI's Responses API with one image; the caption is the output text."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError, ParameterInvalid, ParameterUnsupported
from captioner.wire import Caption, Details, ModelCard
from frontend.api.backend import Backend
from frontend.api.chat_request import DETAIL, LABELS, ROLES, WIRE_NAMES, wire_parameters
from frontend.api.openapi import responses, responses_body
from frontend.api.request_body import read_json
from frontend.api.request_values import Neutral, check_model, check_names, flag, short, token_limit
from frontend.api.responses import MEDIA_TYPES, event, respond
from frontend.api.turns import Turn, question
from frontend.http_errors import error_body

TOKEN_LIMIT = "max_output_tokens"
OWN_NAMES = ("model", "input", "instructions", "stream", TOKEN_LIMIT)
NEUTRAL: Neutral = {
    "background": (False,),
    "include": ([],),
    "max_tool_calls": (),
    "parallel_tool_calls": (True, False),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "store": (True, False),  # nothing is stored, and `store` in the response is false
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("auto", "disabled"),
}
ITEM_NAMES = ("type", "role", "content", "id", "status")
TEXT_PARTS = ("input_text", "output_text", "text")


def add_responses(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to the API's router."""

    @router.post(
        "/v1/responses",
        name="responses",
        openapi_extra=responses_body(WIRE_NAMES),
        responses=responses("A response, or its events", *MEDIA_TYPES),
    )
    async def create(request: Request) -> Response:
        """Caption the image of the input."""
        body = await read_json(request)
        card = await backend.cards.get()
        check_model(body.get("model"), card, backend.aliases)
        check_names(body, (*OWN_NAMES, *WIRE_NAMES, *LABELS), NEUTRAL)
        parameters = wire_parameters(body) | token_limit(body, TOKEN_LIMIT) | {"stream": flag(body, "stream")}
        asked = question(input_turns(body), card, parameters)
        image, prompt = await backend.images.read(asked.image), asked.prompt
        parameters["system"] = asked.system
        answer = Answer(card, body, asked.unused_text)
        del body, asked  # the image as text is not needed while the caption is generated
        return await respond(
            backend.client,
            image,
            prompt,
            parameters,
            whole=answer.whole,
            events=answer.events,
            error_event=answer.error_event,
        )


class Answer:
    """One response, whole or in events."""

    def __init__(self, card: ModelCard, body: dict[str, Any], unused_text: str) -> None:
        self._unused_text = unused_text
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._sequence = 0
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": card.model,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get(TOKEN_LIMIT),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.get("temperature"),
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
        }

    def whole(self, caption: Caption) -> dict[str, Any]:
        """Return the finished response."""
        details = caption.details
        is_cut = details.finish_reason in ("length", "deadline")
        return self._head | {
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._item(caption.text, "incomplete" if is_cut else "completed")],
            "usage": _usage(details),
            "captioner": asdict(details) | ({"unused_text": self._unused_text} if self._unused_text else {}),
        }

    async def events(self, stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
        """Yield the events of a response, from response.created to response.completed or response.incomplete."""
        begun = self._head | {"status": "in_progress", "output": [], "usage": None}
        item, place = {"output_index": 0}, {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", **item, item=self._item(None, "in_progress"))
        yield self._event("response.content_part.added", **place, part=_part(""))
        texts = [first]
        if first:
            yield self._event("response.output_text.delta", **place, delta=first, logprobs=[])
        async for text in stream:
            texts.append(text)
            yield self._event("response.output_text.delta", **place, delta=text, logprobs=[])
        if stream.details is None:
            raise CaptionerError("the stream ended without details")
        whole = self.whole(Caption("".join(texts), stream.details))
        yield self._event("response.output_text.done", **place, text="".join(texts), logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part("".join(texts)))
        yield self._event("response.output_item.done", **item, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def error_event(self, error: CaptionerError) -> bytes:
        """Return the event that ends a broken stream."""
        body = error_body(error)["error"]
        return self._event("error", **{name: body[name] for name in ("code", "message", "param")})

    def _event(self, kind: str, **values: object) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return event({"type": kind, "sequence_number": number} | values, kind)

    def _item(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def input_turns(body: dict[str, Any]) -> list[Turn]:
    """Return the turns of `instructions` and `input`. Raises ParameterInvalid or ParameterUnsupported."""
    given, instructions = body.get("input"), body.get("instructions")
    if not isinstance(instructions, str | None):
        raise ParameterInvalid(f"instructions is {short(instructions)}; it must be text")
    turns = [] if instructions is None else [Turn("system", [instructions])]
    if isinstance(given, str):
        return [*turns, Turn("user", [given])]
    if not isinstance(given, list) or not given:
        raise ParameterInvalid("input is missing; it must be text or a list of messages")
    return [*turns, *(_turn(f"input[{index}]", item) for index, item in enumerate(given))]


def _turn(path: str, item: object) -> Turn:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise ParameterUnsupported(f"{path} is {short(item)}; it must be a message")
    if item.get("role") not in ROLES:
        raise ParameterInvalid(f"{path} has no known role; the roles are {', '.join(ROLES)}")
    for name in item:
        if name not in ITEM_NAMES:
            raise ParameterUnsupported(f"{path}.{name[:80]} is not supported")
    turn, content = Turn(item["role"]), item.get("content")
    if isinstance(content, str):
        turn.texts.append(content)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _read_part(f"{path}.content[{index}]", part, turn)
    else:
        raise ParameterInvalid(f"{path}.content is {short(content)}; it must be text or a list of parts")
    return turn


def _read_part(path: str, part: object, turn: Turn) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
        turn.texts.append(part["text"])
        return
    url = part.get("image_url") if isinstance(part, dict) and kind == "input_image" else None
    if not isinstance(part, dict) or not isinstance(url, str):
        raise ParameterUnsupported(
            f"{path} is {short(part)}; it must be an input_text or an input_image with image_url"
        )
    if part.get("detail") not in (None, *DETAIL) or part.get("file_id") is not None:
        raise ParameterUnsupported(f"{path} must hold only an image_url and a detail of {', '.join(DETAIL)}")
    if not url[:8].lower().startswith(("data:", "http://", "https://")):
        raise ParameterInvalid(f"{path}.image_url is {short(url)}; it must be a data URL or an http(s) URL")
    turn.images.append(url)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(details: Details) -> dict[str, Any]:
    return {
        "input_tokens": details.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": details.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": details.prompt_tokens + details.tokens,
    }
