"""The OpenAPI document, generated from the wire's table of parameters. Its examples are valid requests."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

import captioner
from captioner.wire import PARAMETERS, TEXT_LISTS, ModelCard, Parameter

# A white PNG of 8 × 8 px.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAA"
    "DsdIMmAAAADUlEQVR42mP4z8SADAEPcQEOdvOI0AAAAABJRU5ErkJggg=="
)
EXAMPLE_CARD = ModelCard(
    model="ada/small-captioner",
    revision="5f0c3a9be2d14e7788a1c06b3f92d7e4510ab8cd",
    version="3",
    license="apache-2.0",
    base_model="google/vit-base-patch16-224-in21k, openai-community/gpt2",
    intended_use="Alt texts of everyday photos. A person reviews them before they are published.",
    styles={"descriptive": ["short", "medium"]},
    extras={},
    takes_name=False,
    default_style="descriptive",
    default_length="medium",
    max_tokens=64,
    device="cpu",
    precision="fp32",
    encoder_precision="fp32",
    follows_instructions=False,
    prompts={"descriptive": {"short": "<|short|>", "medium": "<|medium|>"}},
)
MODEL = {"type": "string", "description": "the served model's id, an alias of it, or captioner"}
TOKEN_LIMIT = {"type": "integer", "minimum": 1, "description": "maximum number of tokens to generate"}
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
TEXTS = {"type": "array", "items": {"type": "string"}}

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]


def captions_body(names: tuple[str, ...]) -> Schema:
    """Return the schema of the body of POST /v1/captions; `names` are the wire's parameters."""
    meaning = "sent to the model instead of style, length, extras and name; a language adds its sentence"
    prompt = {"type": "string", "description": meaning}
    file = {"type": "string", "format": "binary"}
    text = {"type": "string", "description": "base64, a data URL, or an image URL of a host that the server allows"}
    others = {"prompt": prompt} | {name: _parameter(PARAMETERS[name]) for name in names}
    example = {"image": EXAMPLE_IMAGE, "length": "short"}
    return _body(
        {
            "multipart/form-data": {"schema": _object({"image": file} | others, "image")},
            "application/json": {"schema": _object({"image": text} | others, "image"), "example": example},
            "image/*": {"schema": file},
        }
    )


def chat_body(names: tuple[str, ...]) -> Schema:
    """Return the schema of the body of POST /v1/chat/completions; `names` are the wire's parameters."""
    usage = _object({"include_usage": {"type": "boolean"}})
    own = {
        "model": MODEL,
        "messages": {"type": "array", "items": {"type": "object"}},
        "stream": {"type": "boolean", "default": False},
        "stream_options": usage,
        "max_tokens": TOKEN_LIMIT,
        "max_completion_tokens": TOKEN_LIMIT,
    }
    parameters = {name: _parameter(PARAMETERS[name]) for name in names}
    image = {"type": "image_url", "image_url": {"url": EXAMPLE_IMAGE}}
    content = [{"type": "text", "text": "Describe the image."}, image]
    example = {"model": "captioner", "messages": [{"role": "user", "content": content}], "max_tokens": 20}
    schema = _object(own | parameters, "model", "messages")
    return _body({"application/json": {"schema": schema, "example": example}})


def responses_body(names: tuple[str, ...]) -> Schema:
    """Return the schema of the body of POST /v1/responses; `names` are the wire's parameters."""
    own = {
        "model": MODEL,
        "input": {"type": "array", "items": {"type": "object"}},
        "instructions": {"type": "string"},
        "stream": {"type": "boolean", "default": False},
        "max_output_tokens": TOKEN_LIMIT,
    }
    content = [
        {"type": "input_text", "text": "Describe the image."},
        {"type": "input_image", "image_url": EXAMPLE_IMAGE},
    ]
    example = {"model": "captioner", "input": [{"role": "user", "content": content}], "max_output_tokens": 20}
    schema = _object(own | {name: _parameter(PARAMETERS[name]) for name in names}, "model", "input")
    return _body({"application/json": {"schema": schema, "example": example}})


def json_body(example: Schema, *required: str) -> Schema:
    """Return the schema of a body in another service's format, given an example."""
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    properties = {name: {"type": kinds[type(value)]} for name, value in example.items()}
    return _body({"application/json": {"schema": _object(properties, *required), "example": example}})


def file_body(*others: tuple[str, Schema]) -> Schema:
    """Return the schema of a body that is the image file itself, or one of `others`, (media type, its content)."""
    return _body({"image/*": {"schema": {"type": "string", "format": "binary"}}} | dict(others))


def responses(description: str, *media_types: str, example: object = None) -> Responses:
    """Return an endpoint's documented responses: 200 with `example` as its content, and the error format."""
    texts = {name: {"type": "string"} for name in ("code", "message", "type")}
    error = _object(texts | {"param": {"type": ["string", "null"]}}, "code", "message")
    too_large = {"code": "IMAGE_TOO_LARGE", "message": "31.0 MiB; the limit is 20 MiB", "type": "invalid_request_error"}
    content = {"schema": _object({"error": error}, "error"), "example": {"error": too_large | {"param": None}}}
    ok = {} if example is None else {"example": example}
    return {
        200: {"description": description, "content": dict.fromkeys(media_types, ok)},
        "default": {"description": "An error", "content": {"application/json": content}},
    }


def document(router: APIRouter, root_path: str) -> Schema:
    """Return the content of /openapi.json."""
    return get_openapi(
        title="Captioner",
        version=captioner.__version__,
        summary="An image in, its caption out.",
        routes=router.routes,
        servers=[{"url": root_path or "/"}],
    )


def _parameter(parameter: Parameter) -> Schema:
    schema: Schema = {"type": TYPES[parameter.kind], "description": parameter.doc}
    if parameter.name in TEXT_LISTS:
        schema = {"anyOf": [TEXTS, {"type": "string"}], "description": parameter.doc}
    more = {"default": parameter.default, "minimum": parameter.minimum, "maximum": parameter.maximum}
    return schema | {name: value for name, value in more.items() if value is not None}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": content}}
