"""GET /v1/models and GET /v1/models/{model}: the served model and its card, in the format of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from captioner.wire import ModelCard
from frontend.api.backend import Backend
from frontend.api.openapi import EXAMPLE_CARD, responses
from frontend.api.request_values import check_model


def add_models(router: APIRouter, backend: Backend) -> None:
    """Add the endpoints to the API's router."""

    @router.get(
        "/v1/models",
        name="models",
        responses=responses("The model", "application/json", example=_list(EXAMPLE_CARD)),
    )
    async def models() -> JSONResponse:
        """List the served model with its card, by its id and by each alias."""
        return JSONResponse(_list(await backend.cards.get(), backend.aliases))

    @router.get(
        "/v1/models/{model:path}",
        name="models",
        responses=responses("The model", "application/json", example=_model(EXAMPLE_CARD)),
    )
    async def retrieve(model: str) -> JSONResponse:
        """Return the served model's card by its id."""
        card = await backend.cards.get()
        check_model(model, card, backend.aliases)
        return JSONResponse(_model(card))


def _list(card: ModelCard, aliases: Sequence[str] = ()) -> dict[str, Any]:
    return {"object": "list", "data": [_model(card), *(_model(card) | {"id": alias} for alias in aliases)]}


def _model(card: ModelCard) -> dict[str, Any]:
    owner, slash, _ = card.model.partition("/")
    rest = {name: value for name, value in asdict(card).items() if name != "model"}
    # `created` is required by OpenAI's clients; the true time is not known.
    return {"id": card.model, "object": "model", "created": 0, "owned_by": owner if slash else "captioner"} | rest
