"""Azure's Image Analysis 4.0: its own client, against the real server and a scripted one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from azure.ai.vision.imageanalysis import ImageAnalysisClient
from azure.ai.vision.imageanalysis.aio import ImageAnalysisClient as AsyncImageAnalysisClient
from azure.ai.vision.imageanalysis.models import VisualFeatures
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from captioner.client import Client
from captioner.wire import Region
from frontend.options import Options
from tests.support.api_client import PHOTO
from tests.support.api_server import api_server
from tests.support.cards import CARD
from tests.support.scripted_server import ScriptedServer
from tests.support.served import Served

KEY = AzureKeyCredential("the-key")
PATH = "/computervision/imageanalysis:analyze?api-version=2023-10-01"
FILE = {"Content-Type": "application/octet-stream"}
CAPTION = [VisualFeatures.CAPTION]


@pytest.fixture
def scripted_url(scripted_server: ScriptedServer) -> Iterator[str]:
    with api_server(scripted_server.address) as url:
        yield url


@pytest.mark.triton
def test_azures_client_gets_the_caption_its_confidence_and_tags(served: Served) -> None:
    with Client(served.grpc) as captioner:
        expected, tags = captioner.caption(PHOTO), captioner.caption(PHOTO, style="tags").text
    with api_server(served.grpc, Options(api_keys=("the-key",))) as url, ImageAnalysisClient(url, KEY) as client:
        answer = client.analyze(PHOTO.read_bytes(), [VisualFeatures.TAGS, VisualFeatures.CAPTION])
    assert answer.caption is not None and answer.caption.text == expected.text
    assert answer.caption.confidence == expected.details.confidence
    assert answer.tags is not None
    assert [tag.name for tag in answer.tags.list] == list(dict.fromkeys(tag.strip() for tag in tags.split(",")))
    assert (answer.metadata.width, answer.metadata.height) == (
        expected.details.image.width,
        expected.details.image.height,
    )
    assert answer.model_version == expected.details.revision


@pytest.mark.triton
def test_sixteen_at_once_get_the_same_text(url: str) -> None:
    async def ask() -> set[str]:
        async with AsyncImageAnalysisClient(url, KEY) as client:
            data = PHOTO.read_bytes()
            answers = await asyncio.gather(*(client.analyze(data, CAPTION) for _ in range(16)))
            return {answer.caption.text for answer in answers if answer.caption is not None}

    assert len(asyncio.run(ask())) == 1


def test_a_wrong_key_is_azures_authentication_error(scripted_server: ScriptedServer) -> None:
    with (
        api_server(scripted_server.address, Options(api_keys=("another",))) as url,
        ImageAnalysisClient(url, KEY) as client,
        pytest.raises(ClientAuthenticationError) as caught,
    ):
        client.analyze(PHOTO.read_bytes(), CAPTION)
    assert caught.value.status_code == 401


@pytest.mark.parametrize(
    ("features", "more", "inner", "words"),
    [
        ("denseCaptions", "", "NotSupportedFeature", "features has denseCaptions"),
        ("caption,read", "", "NotSupportedFeature", "features has read"),
        ("faces", "", "PARAMETER_INVALID", "features has 'faces'"),
        ("", "", "PARAMETER_INVALID", "features is missing"),
        ("caption", "&language=es", "NotSupportedFeature", "language is 'es'"),
        ("caption", "&gender-neutral-caption=true", "NotSupportedFeature", "gender-neutral-caption is 'true'"),
        ("caption", "&color=1", "PARAMETER_UNKNOWN", "'color' is not a parameter"),
    ],
)
def test_a_refusal_has_azures_form(scripted_url: str, features: str, more: str, inner: str, words: str) -> None:
    answer = httpx.post(f"{scripted_url}{PATH}&features={features}{more}", content=PHOTO.read_bytes(), headers=FILE)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["innererror"]["code"]) == (400, "InvalidRequest", inner)
    assert words in error["message"]


@pytest.mark.parametrize(("language", "sent"), [("en", ""), ("de", "de")])
def test_a_language_reaches_a_model_that_takes_one(
    scripted_url: str, scripted_server: ScriptedServer, language: str, sent: str
) -> None:
    scripted_server.card = replace(CARD, takes_language=True)
    with ImageAnalysisClient(scripted_url, KEY) as client:
        client.analyze(PHOTO.read_bytes(), CAPTION, language=language)
    assert scripted_server.languages[-1] == sent


def test_regions_become_dense_captions_and_objects(scripted_url: str, scripted_server: ScriptedServer) -> None:
    places = (Region("a car", box=(1, 2, 11, 22)), Region("EXIT", polygon=((1, 1), (2, 1), (2, 2), (1, 2))))
    scripted_server.details = replace(scripted_server.details, regions=places)
    styles = {"regions": ["any"], "objects": ["any"]}
    scripted_server.card = replace(scripted_server.card, styles=scripted_server.card.styles | styles)
    with ImageAnalysisClient(scripted_url, KEY) as client:
        answer = client.analyze(PHOTO.read_bytes(), [VisualFeatures.DENSE_CAPTIONS, VisualFeatures.OBJECTS])
    assert answer.dense_captions is not None and answer.objects is not None and answer.caption is None
    (dense,), (found,) = answer.dense_captions.list, answer.objects.list
    assert (dense.text, found.tags[0].name) == ("a car", "a car")
    for box in (dense.bounding_box, found.bounding_box):
        assert (box.x, box.y, box.width, box.height) == (1, 2, 10, 20)


def test_an_address_is_fetched_only_from_hosts_that_are_allowed(scripted_url: str) -> None:
    with ImageAnalysisClient(scripted_url, KEY) as client, pytest.raises(HttpResponseError) as caught:
        client.analyze_from_url("https://example.org/cat.jpg", CAPTION)
    assert caught.value.status_code == 400 and "image URLs are not allowed" in str(caught.value)


def test_a_busy_server_is_azures_server_error(scripted_url: str, scripted_server: ScriptedServer) -> None:
    scripted_server.fault = "busy"
    answer = httpx.post(f"{scripted_url}{PATH}&features=caption", content=b"x", headers=FILE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "InternalServerError")


def test_unicode_is_kept(scripted_url: str, scripted_server: ScriptedServer) -> None:
    scripted_server.pieces = ("Ein schönes ", "Foto — ", "猫😀")
    with ImageAnalysisClient(scripted_url, KEY) as client:
        answer = client.analyze(PHOTO.read_bytes(), CAPTION, language="en", gender_neutral_caption=False)
    assert answer.caption is not None and answer.caption.text == "Ein schönes Foto — 猫😀"
