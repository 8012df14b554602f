"""POST /v1/chat/completions and GET /v1/models: what OpenAI's clients speak, answered with a caption."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from captioner.client import AsyncClient
from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError
from captioner.wire import Caption, Details, Ending, ModelCard
from frontend.api.chat_request import WIRE_NAMES, ChatRequest, chat_request, check_model
from frontend.api.openapi import EXAMPLE_CARD, answers, chat_body
from frontend.api.request_body import read_json
from frontend.api.responses import MEDIA_TYPES, event, respond
from frontend.http_errors import refusal_body
from frontend.model_card_cache import ModelCardCache
from frontend.remote_images import RemoteImages

FINISH_REASONS: dict[Ending, str] = {
    "stop": "stop",
    "repetition": "stop",
    "length": "length",
    "deadline": "length",
}


class Completion:
    """One answer, whole or in chunks."""

    def __init__(self, card: ModelCard, asked: ChatRequest) -> None:
        self._asked = asked
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": card.model,
            "system_fingerprint": card.revision,
        }

    def whole(self, caption: Caption) -> dict[str, Any]:
        """A chat.completion."""
        message = {"role": "assistant", "content": caption.text, "refusal": None}
        choice = _choice("message", message, FINISH_REASONS[caption.details.finish_reason])
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(caption.details),
            "captioner": self._captioner(caption.details),
        }

    async def chunks(self, stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
        """The chat.completion.chunks, and [DONE]; an error in place of the rest where the writing breaks off."""
        try:
            yield self._chunk([_choice("delta", {"role": "assistant", "content": first}, None)])
            async for text in stream:
                yield self._chunk([_choice("delta", {"content": text}, None)])
            details = stream.details
            if details is None:
                raise CaptionerError("the stream ended without details")
            last = [_choice("delta", {}, FINISH_REASONS[details.finish_reason])]
            yield self._chunk(last, captioner=self._captioner(details))
            if self._asked.include_usage:
                yield self._chunk([], usage=_usage(details))
            yield b"data: [DONE]\n\n"
        except CaptionerError as error:
            yield event(refusal_body(error))

    @property
    def headers(self) -> dict[str, str]:
        """Says before the first word that the messages' text is not used."""
        return {"x-captioner-unused-text": "true"} if self._asked.unused_text else {}

    def _chunk(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        usage = {"usage": None} if self._asked.include_usage else {}
        return event(self._head | {"object": "chat.completion.chunk", "choices": choices} | usage | more)

    def _captioner(self, details: Details) -> dict[str, Any]:
        unused = self._asked.unused_text
        return asdict(details) | ({"unused_text": unused} if unused else {})


def chat(client: AsyncClient, images: RemoteImages, served: ModelCardCache) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        openapi_extra=chat_body(WIRE_NAMES),
        responses=answers("A completion, or its chunks", *MEDIA_TYPES),
    )
    async def complete(request: Request) -> Response:
        """A caption as the answer to a chat with an image."""
        body = await read_json(request)
        card = await served.get()
        asked = chat_request(body, card)
        completion = Completion(card, asked)
        image = await images.read(asked.image)
        return await respond(
            client,
            image,
            asked.prompt,
            asked.parameters | {"stream": asked.stream},
            whole=completion.whole,
            events=completion.chunks,
            headers=completion.headers,
        )

    @router.get("/v1/models", responses=answers("The model", "application/json", example=_models(EXAMPLE_CARD)))
    async def models() -> JSONResponse:
        """The one model that is served, with its card."""
        return JSONResponse(_models(await served.get()))

    @router.get(
        "/v1/models/{model:path}", responses=answers("The model", "application/json", example=_model(EXAMPLE_CARD))
    )
    async def model(model: str) -> JSONResponse:
        """The served model's card, by its id."""
        card = await served.get()
        check_model(model, card)
        return JSONResponse(_model(card))

    return router


def _choice(kind: str, said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, kind: said, "logprobs": None, "finish_reason": finish_reason}


def _usage(details: Details) -> dict[str, int]:
    return {
        "prompt_tokens": details.prompt_tokens,
        "completion_tokens": details.tokens,
        "total_tokens": details.prompt_tokens + details.tokens,
    }


def _models(card: ModelCard) -> dict[str, Any]:
    return {"object": "list", "data": [_model(card)]}


def _model(card: ModelCard) -> dict[str, Any]:
    owner, slash, _ = card.model.partition("/")
    about = {name: value for name, value in asdict(card).items() if name != "model"}
    # When it was made is not known.
    return {"id": card.model, "object": "model", "created": 0, "owned_by": owner if slash else "captioner"} | about
