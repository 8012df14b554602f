"""POST /v1/chat/completions: a chat request of OpenAI's API with one image; the caption is the assistant's answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError
from captioner.wire import Caption, Details, FinishReason, ModelCard
from frontend.api.backend import Backend
from frontend.api.chat_request import WIRE_NAMES, chat_request
from frontend.api.openapi import chat_body, responses
from frontend.api.request_body import read_json
from frontend.api.responses import MEDIA_TYPES, event, respond
from frontend.http_errors import error_body

FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "repetition": "stop",
    "length": "length",
    "deadline": "length",
}


class Completion:
    """One response, whole or in chunks."""

    def __init__(self, card: ModelCard, unused_text: str, include_usage: bool) -> None:
        self._unused_text, self._include_usage = unused_text, include_usage
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": card.model,
            "system_fingerprint": card.revision,
        }

    def whole(self, caption: Caption) -> dict[str, Any]:
        """Return a chat.completion."""
        message = {"role": "assistant", "content": caption.text, "refusal": None}
        choice = _choice("message", message, FINISH_REASONS[caption.details.finish_reason])
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(caption.details),
            "captioner": self._captioner(caption.details),
        }

    async def chunks(self, stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
        """Yield chat.completion.chunk events and [DONE]."""
        yield self._chunk([_choice("delta", {"role": "assistant", "content": first}, None)])
        async for text in stream:
            yield self._chunk([_choice("delta", {"content": text}, None)])
        details = stream.details
        if details is None:
            raise CaptionerError("the stream ended without details")
        last = [_choice("delta", {}, FINISH_REASONS[details.finish_reason])]
        yield self._chunk(last, captioner=self._captioner(details))
        if self._include_usage:
            yield self._chunk([], usage=_usage(details))
        yield b"data: [DONE]\n\n"

    @property
    def headers(self) -> dict[str, str]:
        """Response headers. They report before the first token that the model ignores the messages' text."""
        return {"x-captioner-unused-text": "true"} if self._unused_text else {}

    def _chunk(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return event(self._head | {"object": "chat.completion.chunk", "choices": choices} | usage | more)

    def _captioner(self, details: Details) -> dict[str, Any]:
        return asdict(details) | ({"unused_text": self._unused_text} if self._unused_text else {})


def add_chat(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to the API's router."""

    @router.post(
        "/v1/chat/completions",
        name="chat",
        openapi_extra=chat_body(WIRE_NAMES),
        responses=responses("A completion, or its chunks", *MEDIA_TYPES),
    )
    async def complete(request: Request) -> Response:
        """Caption the image of a chat."""
        body = await read_json(request)
        card = await backend.cards.get()
        chat = chat_request(body, card, backend.aliases)
        image = await backend.images.read(chat.question.image)
        prompt, parameters = (
            chat.question.prompt,
            chat.parameters | {"stream": chat.stream, "system": chat.question.system},
        )
        completion = Completion(card, chat.question.unused_text, chat.include_usage)
        del body, chat  # the image as text is not needed while the caption is generated
        return await respond(
            backend.client,
            image,
            prompt,
            parameters,
            whole=completion.whole,
            events=completion.chunks,
            error_event=chat_error,
            headers=completion.headers,
        )


def chat_error(error: CaptionerError) -> bytes:
    """Return the event that ends a broken stream."""
    return event(error_body(error))


def _choice(kind: str, message: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, kind: message, "logprobs": None, "finish_reason": finish_reason}


def _usage(details: Details) -> dict[str, int]:
    return {
        "prompt_tokens": details.prompt_tokens,
        "completion_tokens": details.tokens,
        "total_tokens": details.prompt_tokens + details.tokens,
    }
