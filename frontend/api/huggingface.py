"""The image-to-text task of Hugging Face's inference endpoints: an image in, `[{"generated_text": …}]` out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from captioner.errors import CaptionerError, ImageMissing, ParameterInvalid
from captioner.wire import Caption
from frontend.api.backend import Backend
from frontend.api.captions import caption_error, caption_events
from frontend.api.openapi import EXAMPLE_IMAGE, file_body, responses
from frontend.api.request_body import is_file, read_file, read_json
from frontend.api.request_values import Neutral, check_model, check_names, short, token_limit
from frontend.api.responses import respond

PARAMETERS = ("num_beams", "repetition_penalty", "seed", "temperature", "top_k", "top_p")  # as the wire names them
NESTED = ("generate_kwargs", "generation_parameters")  # where versions of the task's clients put them
NEUTRAL: Neutral = {
    "do_sample": (True, False),
    "early_stopping": (True, False),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
    "use_cache": (True, False),
}


def huggingface_error(error: CaptionerError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": str(error), "error_type": error.code}


def add_huggingface(router: APIRouter, backend: Backend) -> None:
    """Add the endpoints to the API's router. The bare URL is that of an inference endpoint of one's own."""
    example = {"inputs": EXAMPLE_IMAGE, "parameters": {"max_new_tokens": 20}}
    body = file_body(("application/json", {"schema": {"type": "object"}, "example": example}))
    answers = responses("The caption", "application/json")

    async def image_to_text(request: Request) -> Response:
        image, parameters = await _read(request, backend)
        return await respond(
            backend.client,
            image,
            None,
            parameters | {"stream": False},
            whole=_whole,
            events=caption_events,
            error_event=caption_error,
        )

    @router.post("/", name="huggingface", openapi_extra=body, responses=answers)
    async def endpoint(request: Request) -> Response:
        """Caption an image."""
        return await image_to_text(request)

    @router.post("/models/{model:path}", name="huggingface", openapi_extra=body, responses=answers)
    async def model_endpoint(request: Request, model: str) -> Response:
        """Caption an image with the served model."""
        check_model(model, await backend.cards.get(), backend.aliases)
        return await image_to_text(request)


async def _read(request: Request, backend: Backend) -> tuple[bytes, dict[str, Any]]:
    """Return the image and the wire's parameters."""
    if is_file(request):
        return await read_file(request), {}
    body = await read_json(request)
    check_names(body, ("inputs", "parameters", "options"), {})
    image, parameters = body.get("inputs"), body.get("parameters") or {}
    if not isinstance(image, str):
        raise ImageMissing("inputs is missing; it must be the image as base64")
    if not isinstance(parameters, dict):
        raise ParameterInvalid(f"parameters is {short(parameters)}; it must be an object")
    values = {name: value for name, value in parameters.items() if name not in NESTED}
    for name in NESTED:
        nested = parameters.get(name) or {}
        if not isinstance(nested, dict):
            raise ParameterInvalid(f"{name} is {short(nested)}; it must be an object")
        values = {**nested, **values}
    check_names(values, (*PARAMETERS, "max_new_tokens"), NEUTRAL)
    found = {name: values[name] for name in PARAMETERS if values.get(name) is not None}
    return await backend.images.read(image), found | token_limit(values, "max_new_tokens")


def _whole(caption: Caption) -> list[dict[str, Any]]:
    return [{"generated_text": caption.text, "details": asdict(caption.details)}]
