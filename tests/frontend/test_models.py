"""GET /v1/models: the served model and its card."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import asdict, replace

import httpx
import openai
import pytest

import frontend.model_card_cache
from captioner.client import Client
from frontend.options import Options
from tests.support.api_server import api_server
from tests.support.cards import CARD, CardServer
from tests.support.served import Served

COMMIT = "[0-9a-f]{40}"
CARD_FIELDS = ("revision", "license", "base_model", "intended_use")


@pytest.mark.triton
def test_the_list_of_models_has_the_served_model_with_its_card(url: str, served: Served) -> None:
    with Client(served.grpc) as captioner:
        card = captioner.describe()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        [model] = client.models.list().data
        assert model.id == card.model
        extra = model.model_extra or {}
        assert all(extra[name] == getattr(card, name) for name in ("styles", *CARD_FIELDS))
        assert re.fullmatch(COMMIT, extra["revision"])
        for name in (card.model, "captioner", f"{card.model}@{card.revision}"):
            assert client.models.retrieve(name).id == card.model
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("owner/other")


def test_the_model_has_every_field_of_its_card_and_the_openapi_document_shows_them() -> None:
    with closing(CardServer(CARD)) as server, api_server(server.address) as url:
        [model] = httpx.get(f"{url}/v1/models").json()["data"]
        paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    card = asdict(CARD)
    assert model["id"] == card.pop("model") and model.items() >= card.items()
    examples = [
        paths[path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        for path in ("/v1/models", "/v1/models/{model}")
    ]
    assert examples[0]["data"] == [examples[1]]
    assert examples[1].keys() == model.keys()
    assert all(examples[1][name] for name in CARD_FIELDS) and re.fullmatch(COMMIT, examples[1]["revision"])


def test_a_new_version_is_listed_when_the_cached_card_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(CardServer(CARD)) as server, api_server(server.address) as url:
        versions = [httpx.get(f"{url}/v1/models").json()["data"][0]["version"]]
        server.card = replace(CARD, version="2")
        versions.append(httpx.get(f"{url}/v1/models").json()["data"][0]["version"])
        monkeypatch.setattr(frontend.model_card_cache, "MAX_AGE_S", 0.0)
        versions.append(httpx.get(f"{url}/v1/models").json()["data"][0]["version"])
    assert versions == ["1", "1", "2"]


def test_an_alias_is_listed_and_names_the_served_model() -> None:
    with closing(CardServer(CARD)) as server, api_server(server.address, Options(aliases=("gpt-4o", "dummy"))) as url:
        assert [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]] == [CARD.model, "gpt-4o", "dummy"]
        assert httpx.get(f"{url}/v1/models/gpt-4o").json()["id"] == CARD.model
        assert httpx.get(f"{url}/v1/models/gpt-4").status_code == 404
