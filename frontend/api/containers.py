"""The routes by which clouds call a model's container: SageMaker's `/invocations`, and Vertex AI's predictions.

Their health checks, `/ping` and the route that Vertex AI names, are those of `/readyz`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from captioner.errors import ParameterInvalid
from captioner.wire import Caption
from frontend.api.backend import Backend
from frontend.api.captions import NAMES, answer, caption_body, captions_request
from frontend.api.openapi import EXAMPLE_IMAGE, captions_body, json_body, responses
from frontend.api.request_body import read_json
from frontend.api.request_values import check_names, short
from frontend.api.responses import MEDIA_TYPES
from frontend.client_identity import client_parameters

MAX_INSTANCES = 64  # of one prediction


def add_sagemaker(router: APIRouter, backend: Backend) -> None:
    """Add SageMaker's endpoint to the API's router."""

    @router.post(
        "/invocations",
        name="sagemaker",
        openapi_extra=captions_body(NAMES),
        responses=responses("The caption, or its events", *MEDIA_TYPES),
    )
    async def invoke(request: Request) -> Response:
        """Caption an image; the request and the response are those of /v1/captions."""
        return await answer(request, backend)


def vertex(path: str) -> Callable[[APIRouter, Backend], None]:
    """Return the function that adds Vertex AI's endpoint at `path` to the API's router."""

    def add_vertex(router: APIRouter, backend: Backend) -> None:
        @router.post(
            path,
            name="vertex",
            openapi_extra=json_body({"instances": [{"image": EXAMPLE_IMAGE, "length": "short"}]}, "instances"),
            responses=responses("The captions", "application/json"),
        )
        async def predict(request: Request) -> JSONResponse:
            """Caption each instance. An instance is a request of /v1/captions; `parameters` are for all of them."""
            body = await read_json(request)
            check_names(body, ("instances", "parameters"), {})
            instances, common = body.get("instances"), body.get("parameters") or {}
            if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_INSTANCES:
                raise ParameterInvalid(f"instances must be a list of 1 to {MAX_INSTANCES} requests")
            if not isinstance(common, dict):
                raise ParameterInvalid(f"parameters is {short(common)}; it must be an object")
            tasks = [asyncio.ensure_future(_caption(backend, each, common)) for each in instances]
            try:
                captions = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            return JSONResponse({"predictions": [caption_body(caption) for caption in captions]})

    return add_vertex


async def _caption(backend: Backend, instance: object, common: dict[str, Any]) -> Caption:
    if not isinstance(instance, dict):
        raise ParameterInvalid(f"an instance is {short(instance)}; it must be an object")
    values = {**common, **instance}
    file = values.pop("image_bytes", None)  # Vertex AI's form of binary data
    if isinstance(file, dict) and "image" not in values:
        values["image"] = file.get("b64")
    request = captions_request(values)
    assert isinstance(request.image, str)
    image = await backend.images.read(request.image)
    parameters = {**request.parameters, **client_parameters(), "stream": False}
    return await backend.client.caption(image, prompt=request.prompt, **parameters)
