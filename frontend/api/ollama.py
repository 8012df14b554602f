"""Ollama's API: /api/chat and /api/generate caption an image; /api/tags, /api/show and others tell what is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from captioner.client.stream import AsyncCaptionStream
from captioner.errors import CaptionerError
from captioner.wire import CAPTIONER, Caption, Details, FinishReason, ModelCard
from frontend.api.backend import Backend
from frontend.api.ollama_request import (
    CHAT_NAMES,
    GENERATE_NAMES,
    NEUTRAL,
    chat_turns,
    generate_turns,
    wire_parameters,
)
from frontend.api.openapi import EXAMPLE_IMAGE, json_body, responses
from frontend.api.request_body import read_json
from frontend.api.request_values import check_model, check_names, flag
from frontend.api.responses import respond
from frontend.api.turns import Turn, question

VERSION = "0.12.0"  # of Ollama, whose API this is
NDJSON = "application/x-ndjson"
DONE_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "repetition": "stop",
    "length": "length",
    "deadline": "length",
}


def ollama_error(error: CaptionerError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": str(error), "code": error.code}


def add_ollama(router: APIRouter, backend: Backend) -> None:
    """Add the endpoints to the API's router."""
    example = {"model": CAPTIONER, "stream": False}
    image = EXAMPLE_IMAGE.partition(",")[2]
    message = {"role": "user", "content": "Describe the image.", "images": [image]}

    async def answer(body: dict[str, Any], names: tuple[str, ...], turns: list[Turn], lines: type[Lines]) -> Response:
        card = await _served(backend, body)
        check_names(body, names, NEUTRAL)
        parameters = wire_parameters(body.get("options")) | {"stream": flag(body, "stream", default=True)}
        asked = question(turns, card, parameters)
        image, prompt = await backend.images.read(asked.image), asked.prompt
        parameters["system"] = asked.system
        writer = lines(str(body["model"]))
        body.clear()  # the image as text is not needed while the caption is generated
        del asked, turns[:]
        return await respond(
            backend.client,
            image,
            prompt,
            parameters,
            whole=writer.whole,
            events=writer.lines,
            error_event=lambda error: _line(ollama_error(error)),
            media_type=NDJSON,
        )

    @router.post(
        "/api/chat",
        name="ollama",
        openapi_extra=json_body(example | {"messages": [message]}, "model", "messages"),
        responses=responses("The message, or its lines", "application/json", NDJSON),
    )
    async def chat(request: Request) -> Response:
        """Caption the image of a chat."""
        body = await read_json(request)
        if body.get("messages") == []:
            return await _loaded(backend, body, {"message": {"role": "assistant", "content": ""}})
        return await answer(body, CHAT_NAMES, chat_turns(body), ChatLines)

    @router.post(
        "/api/generate",
        name="ollama",
        openapi_extra=json_body(example | {"prompt": "Describe the image.", "images": [image]}, "model"),
        responses=responses("The response, or its lines", "application/json", NDJSON),
    )
    async def generate(request: Request) -> Response:
        """Caption an image."""
        body = await read_json(request)
        if not body.get("prompt") and not body.get("images"):
            return await _loaded(backend, body, {"response": ""})
        return await answer(body, GENERATE_NAMES, generate_turns(body), GenerateLines)

    @router.get("/api/tags", name="ollama", responses=responses("The models", "application/json"))
    async def tags() -> JSONResponse:
        """List the served model, by each of its names."""
        card = await backend.cards.get()
        return JSONResponse({"models": [_model(card, name) for name in (CAPTIONER, *backend.aliases)]})

    @router.get("/api/ps", name="ollama", responses=responses("The loaded models", "application/json"))
    async def loaded() -> JSONResponse:
        """List the served model as loaded."""
        card = await backend.cards.get()
        return JSONResponse({"models": [_model(card, CAPTIONER) | {"size_vram": 0, "expires_at": _forever()}]})

    @router.post(
        "/api/show",
        name="ollama",
        openapi_extra=json_body({"model": CAPTIONER}, "model"),
        responses=responses("The model", "application/json"),
    )
    async def show(request: Request) -> JSONResponse:
        """Return the served model's card."""
        body = await read_json(request)
        card = await _served(backend, {"model": body.get("model", body.get("name"))})
        return JSONResponse(
            {
                "license": card.license,
                "modelfile": "",
                "parameters": "",
                "template": "",
                "modified_at": _now(),
                "details": _details(card),
                "model_info": {"general.architecture": CAPTIONER, "general.basename": card.model} | asdict(card),
                "capabilities": ["completion", "vision"],
            }
        )

    @router.get("/api/version", name="ollama", responses=responses("The version", "application/json"))
    async def version() -> JSONResponse:
        """Return the version of Ollama whose API this is."""
        return JSONResponse({"version": VERSION})


@dataclass
class Lines:
    """A response as JSON, whole or one line for each piece of text."""

    model: str

    def text(self, text: str) -> dict[str, Any]:
        """Return the member that holds text."""
        raise NotImplementedError

    def whole(self, caption: Caption) -> dict[str, Any]:
        """Return the finished response with `caption`'s text."""
        details = caption.details
        return self._head() | self.text(caption.text) | {"done": True} | _statistics(details) | _captioner(details)

    async def lines(self, stream: AsyncCaptionStream, first: str) -> AsyncIterator[bytes]:
        """Yield a line for each piece of text, and the last one with the statistics."""
        if first:
            yield _line(self._head() | self.text(first) | {"done": False})
        async for text in stream:
            yield _line(self._head() | self.text(text) | {"done": False})
        if stream.details is None:
            raise CaptionerError("the stream ended without details")
        yield _line(self.whole(Caption("", stream.details)))

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": _now()}


class ChatLines(Lines):
    """A response of /api/chat."""

    def text(self, text: str) -> dict[str, Any]:
        """Return the assistant's message."""
        return {"message": {"role": "assistant", "content": text}}


class GenerateLines(Lines):
    """A response of /api/generate."""

    def text(self, text: str) -> dict[str, Any]:
        """Return the response's text."""
        return {"response": text}


async def _served(backend: Backend, body: Mapping[str, Any]) -> ModelCard:
    """Return the model's card. Raises ModelUnknown for another model; NAME:latest is NAME."""
    card, name = await backend.cards.get(), body.get("model")
    check_model(name.removesuffix(":latest") if isinstance(name, str) else name, card, backend.aliases)
    return card


async def _loaded(backend: Backend, body: Mapping[str, Any], text: Mapping[str, Any]) -> JSONResponse:
    """Return the response to a request without a question, by which clients load a model or unload it."""
    await _served(backend, body)
    reason = "unload" if body.get("keep_alive") in (0, "0") else "load"
    return JSONResponse({"model": body["model"], "created_at": _now(), **text, "done": True, "done_reason": reason})


def _model(card: ModelCard, name: str) -> dict[str, Any]:
    head = {"name": f"{name}:latest", "model": f"{name}:latest", "modified_at": _now(), "size": 0}
    return head | {"digest": card.revision, "details": _details(card)}


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": card.model,
        "format": "triton",
        "family": CAPTIONER,
        "families": [CAPTIONER],
        "parameter_size": "",
        "quantization_level": card.precision,
    }


def _statistics(details: Details) -> dict[str, Any]:
    """Return Ollama's statistics; its times are in ns."""
    times = details.timings_ms
    return {
        "done_reason": DONE_REASONS[details.finish_reason],
        "total_duration": round(times.total * 1e6),
        "load_duration": 0,
        "prompt_eval_count": details.prompt_tokens,
        "prompt_eval_duration": round(times.first_token * 1e6),
        "eval_count": details.tokens,
        "eval_duration": round((times.total - times.first_token) * 1e6),
    }


def _captioner(details: Details) -> dict[str, Any]:
    return {"captioner": asdict(details)}


def _line(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n".encode()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _forever() -> str:
    return "9999-12-31T23:59:59Z"
