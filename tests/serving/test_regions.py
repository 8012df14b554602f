"""A served model that names places: regions in the details, readable text, and no location token on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.seeded import florence2
from captioner.families.regions import BOX, QUADRILATERAL
from captioner.serving import served_model
from captioner.serving.detokenizer import Detokenizer
from captioner.serving.feature_cache import Encoded
from captioner.serving.request import CaptionRequest
from captioner.serving.service import CaptionService
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service
from captioner.wire import Details, ImageInfo, ModelCard
from tests.families.tiny_model import TinyModel, noise
from tests.support import tiny
from tests.support.tiny import Recorder

INFO = ImageInfo("PNG", 640, 480, 1, rotated=True, alpha=False)
IMAGE = 2  # its captions name places


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel("florence2", tmp_path_factory.mktemp("florence2"))


@pytest.fixture(scope="module")
def service(model: TinyModel) -> Iterator[CaptionService]:
    """The service of the tiny model. An image is the seed of a noise image."""
    model.manifest.save(model.version)
    model.tokenizer.save(str(model.version / "tokenizer.json"))

    def encode(image: bytes) -> Encoded:
        pixels, _ = model.read(noise((40, 30), int(image)), "")
        return Encoded(model.features(pixels[None])[0].numpy(), INFO)

    settings = Settings(slots=3, cancel_poll_ms=5)
    service = load_service(model.version.parent, model.version.name, None, settings, encode, lambda _: None)
    yield service
    service.close()


def ask(service: CaptionService, image: int, streaming: bool = True, **parameters: Any) -> tuple[Recorder, Details]:
    recorder = Recorder()
    service.handle(CaptionRequest(str(image).encode(), None, parameters, streaming=streaming), recorder)
    assert recorder.code == ""
    return recorder, Details.from_json(recorder.details[-1])


def written(model: TinyModel, image: int, details: Details) -> list[int]:
    """Return the ids that transformers' own generate() writes, without the stop id."""
    pixels, ids = model.read(noise((40, 30), image), details.prompt)
    with torch.inference_mode():
        tokens = model.source.generate(pixels, ids, max_new_tokens=details.max_tokens, do_sample=False, num_beams=1)
    return [token for token in tokens if token not in model.source.stop_ids]


@pytest.mark.parametrize(("style", "per_region"), [("regions", BOX), ("objects", BOX), ("ocr", QUADRILATERAL)])
def test_regions_are_those_of_the_caption(
    model: TinyModel, service: CaptionService, style: str, per_region: int
) -> None:
    _, details = ask(service, IMAGE, style=style, max_tokens=50, repetition_guard=False)
    locations = model.kind.locations(model.tokenizer)
    assert locations is not None and details.regions
    ids = written(model, IMAGE, details)
    assert details.regions == locations.regions(ids, INFO.width, INFO.height, per_region)


@pytest.mark.parametrize("guard", [True, False])
def test_a_stream_never_shows_a_location_token(model: TinyModel, service: CaptionService, guard: bool) -> None:
    for style in ("objects", "descriptive"):
        limits: dict[str, Any] = {"style": style, "max_tokens": 40, "repetition_guard": guard}
        stream, details = ask(service, IMAGE, **limits)
        whole, _ = ask(service, IMAGE, streaming=False, **limits)
        names = [model.tokenizer.id_to_token(token) for token in written(model, IMAGE, details)]
        assert sum(name in florence2.LOCATIONS for name in names) > 5
        assert len(stream.pieces) > 1
        assert not any("loc_" in piece or "<" in piece for piece in stream.pieces)
        assert stream.text == whole.text


@pytest.mark.parametrize(("style", "guards"), [("descriptive", True), ("regions", False), ("objects", False)])
def test_labels_of_two_things_may_be_the_same_words(
    service: CaptionService, monkeypatch: pytest.MonkeyPatch, style: str, guards: bool
) -> None:
    made: list[bool] = []

    def detokenizer(*rules: Any) -> Detokenizer:
        made.append(rules[-1])
        return Detokenizer(*rules)

    monkeypatch.setattr(served_model, "Detokenizer", detokenizer)
    ask(service, 0, style=style, max_tokens=4)
    assert made == [guards], "the guard of clauses"


def test_texts_of_a_chat_are_not_its_prompts(service: CaptionService) -> None:
    recorder = Recorder()
    service.handle(CaptionRequest(None, None, {"describe": True}, streaming=False), recorder)
    assert recorder.code == "" and not ModelCard.from_json(recorder.details[-1]).follows_instructions


def test_a_client_may_not_write_location_tokens(service: CaptionService) -> None:
    recorder = Recorder()
    service.handle(CaptionRequest(b"0", b"What is in <loc_5>?", {}, streaming=False), recorder)
    assert recorder.code == "PARAMETER_INVALID"


def test_other_models_have_no_regions() -> None:
    settings = Settings(slots=1)
    folder = tiny.published()

    def encode(image: bytes) -> Encoded:
        return Encoded(tiny.features(0).numpy(), INFO)

    service = load_service(folder.parent, folder.name, None, settings, encode, lambda _: None)
    try:
        assert ask(service, 0)[1].regions is None
    finally:
        service.close()
