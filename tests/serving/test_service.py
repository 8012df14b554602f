"""The service without Triton: a real decoder and tokenizer, and an encoder that turns numbers into features."""

from __future__ import annotations

import gc
import json
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16

from captioner.artifacts.confidence import Calibration
from captioner.artifacts.manifest import Manifest
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.engine.engine import Engine
from captioner.errors import CaptionerError, ImageBroken, StartupRefused
from captioner.serving import served_model
from captioner.serving.detokenizer import Detokenizer
from captioner.serving.feature_cache import Encoded
from captioner.serving.metrics import Values
from captioner.serving.request import CaptionRequest
from captioner.serving.served_model import ServedModel
from captioner.serving.service import CaptionService
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service
from captioner.wire import Details, ImageInfo, ModelCard
from tests.support import tiny
from tests.support.tiny import Recorder

HAS_KERNEL = has_avx512bf16()  # type: ignore[no-untyped-call]  # bitsandbytes' own, for nf4 on a CPU
INFO = ImageInfo("PNG", 640, 480, 1, rotated=False, alpha=False)
TOKENS = tiny.tokenizer()
LONG = b"4"  # an image whose caption ends only at the token limit


class Encoder:
    """In place of Triton's encoder models: an image is the seed of its features, or the name of a failure."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, image: bytes) -> Encoded:
        self.calls.append(image)
        assert self.go.wait(20)
        if image == b"broken":
            raise ImageBroken("the file ends too early")
        if image == b"bug":
            raise ZeroDivisionError("a bug")
        if image == b"shape":
            return Encoded(np.zeros((3, 7), dtype=np.float32), INFO)
        if image == b"nan":
            return Encoded(np.full((tiny.FEATURE_TOKENS, tiny.FEATURE_WIDTH), np.nan, dtype=np.float32), INFO)
        if image == b"type":
            return Encoded(np.full((tiny.FEATURE_TOKENS, tiny.FEATURE_WIDTH), "x"), INFO)
        return Encoded(tiny.features(int(image)).numpy(), INFO)


Start = Callable[..., CaptionService]


def named(metrics: dict[str, float]) -> Callable[[Values], None]:
    """Return a `report` that keeps each metric by its name, and refusals also as name{code}."""

    def report(values: Values) -> None:
        refused = sum(value for (name, _), value in values.items() if name == "captioner_refused_total")
        metrics.update({f"{name}{{{code}}}" if code else name: value for (name, code), value in values.items()})
        metrics["captioner_refused_total"] = refused

    return report


def served(manifest: Manifest, engine: Engine) -> ServedModel:
    return ServedModel(manifest, "1", "cpu", "fp32", TOKENS, engine.load().slots)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def metrics() -> dict[str, float]:
    """The metrics as last reported."""
    return {}


@pytest.fixture
def start(encoder: Encoder, metrics: dict[str, float]) -> Iterator[Start]:
    services = []

    def begin(**settings: Any) -> CaptionService:
        folder = tiny.published()
        chosen = Settings(**({"slots": 4, "cancel_poll_ms": 5} | settings))
        services.append(load_service(folder.parent, folder.name, None, chosen, encoder, named(metrics)))
        return services[-1]

    yield begin
    encoder.go.set()
    for service in services:
        service.close()


@pytest.fixture
def service(start: Start) -> CaptionService:
    return start()


def ask(
    service: CaptionService,
    image: bytes | None = b"0",
    prompt: bytes | None = None,
    *,
    streaming: bool = True,
    writer: Recorder | None = None,
    **parameters: Any,
) -> Recorder:
    """Send a request and return without waiting for its end."""
    writer = writer or Recorder()
    service.handle(CaptionRequest(image, prompt, parameters, streaming), writer)
    return writer


def details(writer: Recorder) -> Details:
    assert writer.code == "", writer.errors
    return Details.from_json(writer.details[-1])


def captioned(writer: Recorder) -> str:
    assert writer.code == "", writer.errors
    return writer.text


def alone(image: int, prompt: str = tiny.SHORT, max_tokens: int = 20) -> str:
    """Return the greedy caption, made without service, engine or cache."""
    ids = [0, *TOKENS.encode(prompt, add_special_tokens=False).ids]
    tokens = tiny.greedy(tiny.features(image), ids, max_tokens)
    text: str = TOKENS.decode([*ids, *tokens], skip_special_tokens=True)
    return text.lstrip()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not true within 20 s"
        time.sleep(0.005)


def waiting_for_an_encoder(service: CaptionService) -> int:
    """Return the number of requests that are prepared and wait."""
    return len(service._engine._scheduler._to_encode)


@pytest.mark.parametrize("image", range(6))
def test_the_pieces_of_a_stream_join_to_the_caption(service: CaptionService, image: int) -> None:
    writer = ask(service, str(image).encode())
    assert writer.code == ""
    assert writer.text == alone(image)
    assert [bool(text) for text in writer.details] == [False] * (len(writer.details) - 1) + [True]


@pytest.mark.parametrize(
    ("default", "parameter", "streams"),
    [(True, {}, True), (False, {}, False), (True, {"stream": False}, False), (False, {"stream": True}, True)],
)
def test_the_request_overrides_whether_an_endpoint_streams_by_default(
    service: CaptionService, default: bool, parameter: dict[str, Any], streams: bool
) -> None:
    writer = ask(service, LONG, streaming=default, **parameter)
    assert writer.code == ""
    assert (len(writer.pieces) > 1) == streams
    assert writer.text == alone(4)


def test_the_details_describe_how_the_caption_was_made(service: CaptionService) -> None:
    first, again = (ask(service, LONG, style="plain", length="long", extras='["camera"]', max_tokens=9) for _ in "12")
    found, later = details(first), details(again)
    assert found.prompt == "a cat in the fog"
    assert (found.model, found.revision, found.version) == ("tiny", "0" * 40, tiny.published().name)
    assert (found.finish_reason, found.tokens, found.max_tokens) == ("length", 9, 9)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.0, 1.0, 0, 1.0)
    assert (found.image, found.confidence) == (INFO, None)
    assert found.mean_logprob < 0
    assert sorted([found.cache_hit, later.cache_hit]) == [False, True]
    times = found.timings_ms
    assert min(times.queue, times.encode) >= 0
    assert times.queue + times.encode <= times.first_token <= times.total


def test_a_caption_that_ends_with_a_stop_id_has_the_finish_reason_stop(service: CaptionService) -> None:
    found = details(ask(service, b"1", max_tokens=40))
    assert found.finish_reason == "stop"
    assert found.tokens < 40


def test_the_seed_in_the_details_reproduces_the_caption(service: CaptionService) -> None:
    first = ask(service, temperature=1.3, top_p=0.9)
    again = ask(service, temperature=1.3, top_p=0.9, seed=details(first).seed)
    other = ask(service, temperature=1.3, top_p=0.9)
    assert details(again).seed == details(first).seed != details(other).seed
    assert again.text == first.text != other.text


def test_a_prompt_is_used_unchanged_and_begins_the_caption(service: CaptionService) -> None:
    writer = ask(service, b"2", "a dog 猫".encode())
    assert details(writer).prompt == "a dog 猫"
    assert writer.text.startswith("a dog 猫")
    assert writer.text == alone(2, "a dog 猫")


@pytest.mark.parametrize("blank", [" ", "   ", "\n", " \t"])
def test_a_blank_at_the_end_of_a_prompt_that_is_continued_changes_nothing(service: CaptionService, blank: str) -> None:
    writer = ask(service, b"2", f"a dog{blank}".encode())
    assert details(writer).prompt == "a dog" and writer.text == alone(2, "a dog")
    assert captioned(ask(service, b"2", blank.encode())) == captioned(ask(service, b"2", b""))


def test_a_name_is_inserted_into_the_prompt(service: CaptionService) -> None:
    assert details(ask(service, style="named", name="Ada")).prompt == "a photo of Ada"


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        ({"image": None}, "IMAGE_MISSING", "no image"),
        ({"image": b""}, "IMAGE_MISSING", "no image"),
        ({"image": b"broken"}, "IMAGE_BROKEN", "ends too early"),
        ({"image": b"shape"}, "ARTEFACT_BROKEN", "(3, 7)"),
        ({"image": b"type"}, "INTERNAL", "TypeError"),
        ({"image": b"nan"}, "ARTEFACT_BROKEN", "not finite"),
        ({"image": b"bug"}, "INTERNAL", "ZeroDivisionError: a bug"),
        ({"style": "poem"}, "PARAMETER_UNSUPPORTED", "plain, named"),
        ({"length": "endless"}, "PARAMETER_UNSUPPORTED", "short, long"),
        ({"extras": '["mood"]'}, "PARAMETER_UNSUPPORTED", "camera"),
        ({"name": "Ada"}, "PARAMETER_UNSUPPORTED", "'Ada'"),
        ({"temprature": 1.0}, "PARAMETER_UNKNOWN", "'temprature'"),
        ({"temperature": 3.0}, "PARAMETER_INVALID", "from 0 to 2"),
        ({"style": "named", "name": "\ud83d"}, "PARAMETER_INVALID", "name"),
        ({"max_tokens": 47}, "PARAMETER_INVALID", "room for 46"),
        ({"prompt": b"\xff"}, "PARAMETER_INVALID", "0xff"),
        ({"prompt": "猫".encode() * 16}, "PROMPT_TOO_LONG", "limit is 47"),
    ],
)
def test_an_invalid_request_is_refused_with_its_code_and_reason(
    service: CaptionService, request_: dict[str, Any], code: str, named: str
) -> None:
    writer = ask(service, **request_)
    assert writer.code == code
    assert named in str(writer.errors[0])
    assert writer.pieces == []
    good = ask(service, b"3")
    assert good.code == ""
    assert good.text == alone(3)


def test_the_longest_prompt_leaves_room_for_one_token(service: CaptionService) -> None:
    prompt = b"~" * 46
    assert len(TOKENS.encode(prompt.decode()).ids) == tiny.CONTEXT - 2
    assert details(ask(service, LONG, prompt)).max_tokens == 1
    assert ask(service, LONG, prompt + b"~").code == "PROMPT_TOO_LONG"


def instructed(encoder: Encoder, metrics: dict[str, float], language: str) -> CaptionService:
    """Return the service of a model that answers its prompt, with the sentence `language` in its table."""
    published = Manifest.load(tiny.published())
    prompts = replace(published.prompts, language=language)
    manifest = replace(published, prompt_template="{prompt}:", prompts=prompts)
    engine = Engine(tiny.runner(2), manifest.stop_ids, max_waiting=4)
    return CaptionService(served(manifest, engine), engine, encoder, named(metrics), Settings())


def test_a_language_adds_a_sentence_to_the_models_prompt_and_to_a_clients(
    encoder: Encoder, metrics: dict[str, float]
) -> None:
    service = instructed(encoder, metrics, "In {language}!")
    answer = ask(service, None, describe=True)
    assert answer.code == ""
    card = ModelCard.from_json(answer.details[0])
    assert (card.takes_language, card.language_prompt) == (True, "In {language}!")
    for prompt, whole in ((b"", f"{tiny.SHORT} In German!"), (b"a dog?", "a dog? In German!")):
        made = details(ask(service, b"1", prompt, language="de"))
        assert (made.prompt, made.language) == (whole, "German")
        assert made.prompt_tokens == 1 + len(TOKENS.encode(f"{whole}:").ids)
    assert details(ask(service, b"1")).language is None
    service.close()


def test_a_language_is_refused_by_a_model_that_cannot_be_asked(
    service: CaptionService, encoder: Encoder, metrics: dict[str, float]
) -> None:
    older = instructed(encoder, metrics, "")
    for each, reason in ((service, "this model follows no instructions"), (older, "export it again")):
        answer = ask(each, language="German")
        assert answer.code == "PARAMETER_UNSUPPORTED"
        assert reason in str(answer.errors[0]) and "'German'" in str(answer.errors[0])
    older.close()
    assert encoder.calls == []


def test_an_image_is_not_encoded_for_a_refused_parameter(service: CaptionService, encoder: Encoder) -> None:
    assert ask(service, style="poem").code == "PARAMETER_UNSUPPORTED"
    assert encoder.calls == []


def test_describe_answers_with_the_models_card(service: CaptionService, encoder: Encoder) -> None:
    writer = ask(service, None, describe=True)
    assert writer.code == ""
    card = ModelCard.from_json(writer.details[0])
    assert card.styles == {"plain": ["short", "long"], "named": ["short"]}
    assert (card.extras, card.takes_name, card.max_tokens, card.device) == (
        {"camera": "in the fog"},
        True,
        20,
        "cpu",
    )
    assert card.prompts["plain"]["short"] == tiny.SHORT
    assert writer.pieces == [""]
    assert encoder.calls == []


def test_a_known_image_is_a_cache_hit(start: Start, encoder: Encoder, metrics: dict[str, float]) -> None:
    service = start()
    assert [details(ask(service, image)).cache_hit for image in (b"1", b"2", b"1", b"1")] == [False, False, True, True]
    assert encoder.calls == [b"1", b"2"]
    until(lambda: metrics.get("captioner_cache_hits_total") == 2)


class Slow(CrossAttentionDecoder):
    """The real decoder at 100 tokens a second, so that there is time to cancel."""

    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        time.sleep(0.01)
        return super().decode(ids_B, positions_B, span)


def test_an_unexpected_error_is_logged_without_its_message_which_may_quote_the_request(
    service: CaptionService, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(service, b"bug")
    assert answer.ended.wait(20)
    assert "a bug" in str(answer.errors[0])
    assert "ZeroDivisionError" in caplog.text and "a bug" not in caplog.text.replace('"a bug"', "")


def test_a_cancelled_request_frees_its_slot_within_a_few_tokens(encoder: Encoder, metrics: dict[str, float]) -> None:
    engine = Engine(tiny.runner(1, Slow), (), max_waiting=4)
    manifest, settings = Manifest.load(tiny.published()), Settings(slots=1, cancel_poll_ms=5)
    service = CaptionService(served(manifest, engine), engine, encoder, named(metrics), settings)
    leaving = ask(service, LONG, max_tokens=46)
    until(lambda: bool(leaving.pieces))
    leaving.cancelled = True
    assert leaving.code == "CANCELLED"
    assert engine.load().tokens < 30
    after = ask(service, b"1", max_tokens=5)
    assert details(after).tokens == 5
    until(lambda: metrics["captioner_running"] == 0)
    assert metrics["captioner_cancelled_total"] == 1
    service.close()


@pytest.mark.parametrize("slots", [1, 3])
def test_a_full_server_refuses_and_serves_the_admitted_requests(start: Start, encoder: Encoder, slots: int) -> None:
    service = start(slots=slots, max_waiting=2, encode_workers=2)
    encoder.go.clear()
    admitted = [ask(service, str(number).encode()) for number in range(slots + 2)]
    refused = ask(service, b"9")
    assert refused.code == "SERVER_BUSY"
    assert "retry in" in str(refused.errors[0])
    assert not any(writer.ended.is_set() for writer in admitted)
    encoder.go.set()
    assert [writer.code for writer in admitted] == [""] * len(admitted)
    assert [writer.text for writer in admitted] == [alone(number) for number in range(len(admitted))]
    assert ask(service, b"9").code == "", "the slots are free again"


def test_a_request_cancelled_in_the_encode_queue_is_not_encoded(start: Start, encoder: Encoder) -> None:
    service = start(slots=1, max_waiting=1, encode_workers=1)
    encoder.go.clear()
    staying, leaving = ask(service, b"1"), Recorder()
    until(lambda: encoder.calls == [b"1"])
    leaving.cancelled = True
    ask(service, b"2", writer=leaving)
    time.sleep(0.1)  # several polls
    encoder.go.set()
    assert leaving.code == "CANCELLED"
    assert staying.text == alone(1) or staying.code == ""
    assert encoder.calls == [b"1"], "the second image was not encoded"


def test_a_deadline_that_passes_before_the_first_token_is_an_error(start: Start, encoder: Encoder) -> None:
    service = start()
    encoder.go.clear()
    writer = ask(service, deadline_ms=30)
    time.sleep(0.1)
    encoder.go.set()
    assert writer.code == "DEADLINE_EXCEEDED"
    assert writer.pieces == []


def test_two_hundred_requests_of_every_kind_are_each_answered_once(start: Start, metrics: dict[str, float]) -> None:
    service = start(slots=5, max_waiting=300)
    kinds: list[dict[str, Any]] = [
        {}, {"image": b"broken"}, {"image": b"shape"}, {"style": "poem"}, {"temperature": 1.5}, {"image": None},
        {"max_tokens": 1}, {"describe": True}, {"deadline_ms": 1}, {"priority_level": 1}, {"image": b"bug"},
        {"stream": False},
    ]  # fmt: skip
    writers = [Recorder(lambda: time.sleep(random.random() / 1000)) for _ in range(200)]

    def client(numbers: range) -> None:
        for number in numbers:
            ask(service, writer=writers[number], **({"image": str(number % 7).encode()} | kinds[number % len(kinds)]))
            writers[number].cancelled = number % 11 == 3

    threads = [threading.Thread(target=client, args=(range(first, 200, 8),)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    codes = [writer.code for writer in writers]
    time.sleep(0.1)
    assert {writer.finals for writer in writers} == {1}
    assert not any(writer.polled_after_final for writer in writers)
    assert set(codes) <= {
        "", "IMAGE_BROKEN", "ARTEFACT_BROKEN", "PARAMETER_UNSUPPORTED", "IMAGE_MISSING", "INTERNAL", "CANCELLED",
        "DEADLINE_EXCEEDED",
    }  # fmt: skip
    until(lambda: metrics["captioner_running"] == metrics["captioner_waiting"] == 0)
    assert metrics["captioner_captions_total"] == sum(
        not code and "describe" not in kinds[number % len(kinds)] for number, code in enumerate(codes)
    )
    assert metrics["captioner_cancelled_total"] == codes.count("CANCELLED")
    assert metrics["captioner_refused_total"] == sum(code not in ("", "CANCELLED") for code in codes)


class Forgetful(Recorder):
    """Keeps no error: its traceback would refer to the writer."""

    def fail(self, error: CaptionerError) -> None:
        self._end()


@pytest.mark.parametrize(
    ("image", "parameters"),
    [
        (b"0", {}),
        (b"0", {"stream": False}),
        (b"0", {"num_beams": 3}),
        (b"0", {"describe": True}),
        (b"0", {"style": "none"}),
        (b"0", {"unknown": 1}),
        (None, {}),
        *((image, {}) for image in (b"broken", b"bug", b"shape", b"nan", b"type")),
        (LONG, {"deadline_ms": 1}),
    ],
)
def test_a_finished_request_frees_its_writer_without_the_garbage_collector(
    service: CaptionService, image: bytes | None, parameters: dict[str, Any]
) -> None:
    writer = Forgetful()
    freed = weakref.ref(writer)
    gc.disable()
    try:
        ask(service, image, writer=writer, **parameters)
        assert writer.ended.wait(20)
        del writer
        until(lambda: freed() is None)
    finally:
        gc.enable()


def test_a_cancelled_request_frees_its_writer_without_the_garbage_collector(service: CaptionService) -> None:
    writer = Forgetful()
    freed = weakref.ref(writer)
    gc.disable()
    try:
        writer.cancelled = True
        ask(service, LONG, writer=writer)
        assert writer.ended.wait(20)
        del writer
        until(lambda: freed() is None)
    finally:
        gc.enable()


def test_close_answers_the_admitted_requests_and_refuses_new_ones(start: Start, encoder: Encoder) -> None:
    service = start(slots=2, encode_workers=2)
    encoder.go.clear()
    writers = [ask(service, str(number).encode()) for number in range(6)]
    closing = threading.Thread(target=service.close)
    closing.start()
    until(lambda: ask(service, b"1").code == "SERVER_STOPPING")
    encoder.go.set()
    closing.join(20)
    assert not closing.is_alive()
    assert [writer.text for writer in writers] == [alone(number) for number in range(6)]
    assert all(writer.finals == 1 for writer in writers)


def test_the_metrics_are_reported_by_name(start: Start, metrics: dict[str, float]) -> None:
    service = start(slots=4)
    found = details(ask(service, b"0"))
    until(lambda: metrics.get("captioner_captions_total") == 1)
    assert (metrics["captioner_slots"], metrics["captioner_tokens_total"]) == (4, found.tokens)
    assert metrics["captioner_time_to_first_token_ms_total"] == pytest.approx(found.timings_ms.first_token, abs=0.1)


def test_details_are_strict_json(service: CaptionService) -> None:
    writer = ask(service)
    assert writer.code == ""

    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    json.loads(writer.details[-1], parse_constant=no_constant)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_caption_ends_before_its_stop_text_and_no_part_of_it_is_streamed(
    service: CaptionService, num_beams: int
) -> None:
    whole = ask(service, LONG, num_beams=num_beams)
    tokens = details(whole).tokens
    stop = whole.text[5:8]
    for streaming in (True, False):
        writer = ask(service, LONG, streaming=streaming, num_beams=num_beams, stop=json.dumps([stop, "never written"]))
        found = details(writer)
        assert writer.text == whole.text[: whole.text.index(stop)]
        assert found.finish_reason == "stop"
        assert found.tokens < tokens


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_limit_of_characters_ends_the_caption_with_the_finish_reason_length(
    service: CaptionService, num_beams: int
) -> None:
    whole = ask(service, LONG, num_beams=num_beams)
    tokens = details(whole).tokens
    for streaming in (True, False):
        writer = ask(service, LONG, streaming=streaming, num_beams=num_beams, max_characters=12)
        found = details(writer)
        assert 0 < len(writer.text) <= 12 and whole.text.startswith(writer.text)
        assert (found.finish_reason, found.max_characters) == ("length", 12)
        assert found.tokens < tokens


def test_only_a_request_with_stop_texts_or_max_characters_has_a_second_detokenizer(
    service: CaptionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Detokenizer] = []

    def counted(*arguments: Any) -> Detokenizer:
        made.append(Detokenizer(*arguments))
        return made[-1]

    monkeypatch.setattr(served_model, "Detokenizer", counted)
    parameters: list[tuple[dict[str, Any], int]] = [({}, 1), ({"stop": '["."]'}, 2), ({"max_characters": 12}, 2)]
    for limits, count in parameters:
        made.clear()
        assert details(ask(service, b"1", **limits)).tokens
        assert len(made) == count


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_beam_search_writes_what_generate_writes(service: CaptionService, num_beams: int) -> None:
    ids = [0, *TOKENS.encode(tiny.SHORT, add_special_tokens=False).ids]
    for image in range(3):
        written = tiny.generate(image, ids, max_new_tokens=20, num_beams=num_beams)
        writer = ask(service, str(image).encode(), num_beams=num_beams)
        found = details(writer)
        assert writer.text == TOKENS.decode([*ids, *written], skip_special_tokens=True).lstrip()
        assert (found.num_beams, found.tokens) == (num_beams, len(written))
        assert found.mean_logprob < 0


def test_beam_searches_and_single_captions_share_the_slots(service: CaptionService) -> None:
    requests = [(str(number % 5).encode(), 1 + number % 4) for number in range(20)]
    alone = []
    for image, num_beams in requests:
        writer = ask(service, image, num_beams=num_beams)
        assert writer.code == ""
        alone.append(writer.text)
    writers = [ask(service, image, num_beams=num_beams) for image, num_beams in requests]
    assert [writer.code for writer in writers] == [""] * 20
    assert [writer.text for writer in writers] == alone


def test_a_caption_of_candidates_is_the_same_for_any_seed_and_beside_others(service: CaptionService) -> None:
    images = [str(number).encode() for number in range(5)]
    alone = [captioned(ask(service, image, candidates=3, seed=number)) for number, image in enumerate(images)]
    writers = [ask(service, image, candidates=3) for image in images]
    assert [captioned(writer) for writer in writers] == alone
    assert {details(writer).candidates for writer in writers} == {3}
    warm: dict[str, Any] = {"candidates": 3, "temperature": 1.0}
    sampled = {captioned(ask(service, images[0], seed=seed, **warm)) for seed in range(8)}
    assert len(sampled) > 1


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"num_beams": 5}, "num_beams is 5; this server has 4 slots"),
        ({"num_beams": 2, "temperature": 0.7}, "beam search does not sample: use one of the two"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"candidates": 5}, "candidates is 5; this server has 4 slots"),
        ({"candidates": 17}, "candidates is 17"),
        ({"candidates": 2, "num_beams": 2}, "candidates is 2 and num_beams 2; use one of the two"),
        ({"num_beams": 6}, "num_beams is 6"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"style": "haiku"}, "'haiku'"),
        ({"stop": "[1]"}, "stop is"),
    ],
)
def test_an_impossible_parameter_is_refused_before_the_image_is_encoded(
    service: CaptionService, encoder: Encoder, parameters: dict[str, Any], named: str
) -> None:
    writer = ask(service, **parameters)
    assert writer.code.startswith("PARAMETER_")
    assert named in str(writer.errors[0])
    assert encoder.calls == []


def test_a_prompt_longer_than_the_context_is_refused_with_the_limit(service: CaptionService, encoder: Encoder) -> None:
    writer = ask(service, prompt=b"cat " * 60)
    assert writer.code == "PROMPT_TOO_LONG"
    assert f"the limit is {tiny.CONTEXT - 1}" in str(writer.errors[0])
    assert encoder.calls == []


def test_the_repetition_guard_ends_a_caption_that_loops(service: CaptionService) -> None:
    looping: dict[str, Any] = {"repetition_penalty": 0.5, "max_tokens": 40}  # below 1, the model repeats itself
    guarded, free = ask(service, LONG, **looping), ask(service, LONG, repetition_guard=False, **looping)
    assert details(guarded).finish_reason == "repetition"
    assert details(free).finish_reason == "length"
    assert free.text.startswith(guarded.text)
    assert details(guarded).tokens < details(free).tokens


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_calibrated_model_reports_its_confidence_and_whether_it_is_unsure(
    encoder: Encoder, metrics: dict[str, float], threshold: float
) -> None:
    manifest = replace(Manifest.load(tiny.published()), calibration=Calibration(1.5, 2.0, unsure_below=threshold))
    engine = Engine(tiny.runner(2), manifest.stop_ids, max_waiting=4)
    service = CaptionService(served(manifest, engine), engine, encoder, named(metrics), Settings())
    found = details(ask(service, b"1"))
    assert found.confidence == pytest.approx(1 / (1 + math.exp(-(1.5 * found.mean_logprob + 2.0))), abs=1e-3)
    assert found.unsure == (threshold == 1.0)
    service.close()


def test_nothing_of_a_request_is_kept_without_the_feature_cache(start: Start, encoder: Encoder) -> None:
    service = start(feature_cache_mib=0)
    assert ask(service, b"1").code == ""
    assert not details(ask(service, b"1")).cache_hit
    assert encoder.calls == [b"1", b"1"]
    assert not service._in_flight
    assert not service._features._cached
    assert not service._features._in_flight


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'; it must be auto or one of fp32, bf16, int8, nf4"),
        pytest.param(
            {"precision": "nf4"},
            "tiny cannot run in nf4 on cpu",
            marks=pytest.mark.skipif(not HAS_KERNEL, reason="only that kernel needs layers of whole blocks"),
        ),
        ({"slots": 100_000, "kv_cache_mib": 1}, "100000 slots need .* MiB of key/value cache; cpu has 1 MiB"),
    ],
)
def test_settings_that_cannot_be_met_refuse_the_start(start: Start, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(StartupRefused, match=named):
        start(**settings)


def test_the_number_of_slots_follows_from_the_cache_memory(start: Start, metrics: dict[str, float]) -> None:
    slot_bytes = tiny.decoder().slot_bytes
    service = start(slots=0, kv_cache_mib=1)
    assert service._engine.load().slots == min(2**20 // slot_bytes, 16)
    assert start(slots=3)._engine.load().slots == 3


def test_a_deadline_ends_a_request_that_waits_for_the_encoder(start: Start, encoder: Encoder) -> None:
    service = start(slots=1, max_waiting=2, encode_workers=1)
    encoder.go.clear()
    encoding, waiting = ask(service, b"1", deadline_ms=100), ask(service, b"2", deadline_ms=100)
    began = time.monotonic()
    assert (encoding.code, waiting.code) == ("DEADLINE_EXCEEDED",) * 2
    assert time.monotonic() - began < 2, "both end while the encoder still works"
    assert service._engine.load().waiting == 0
    encoder.go.set()
    assert captioned(ask(service, b"3")) == alone(3)
    assert encoding.finals == waiting.finals == 1


def test_a_cancel_ends_a_request_that_is_being_encoded(start: Start, encoder: Encoder) -> None:
    service = start(slots=1, max_waiting=1, encode_workers=1)
    encoder.go.clear()
    writer = ask(service, b"1")
    until(lambda: encoder.calls == [b"1"])
    writer.cancelled = True
    assert writer.code == "CANCELLED"
    assert service._engine.load().waiting == 0
    encoder.go.set()


def test_images_are_encoded_by_priority(start: Start, encoder: Encoder) -> None:
    service = start(slots=1, max_waiting=40, encode_workers=1)
    encoder.go.clear()
    writers = [ask(service, b"0")]
    until(lambda: encoder.calls == [b"0"])
    writers += [ask(service, str(number).encode(), priority_level=3) for number in range(1, 9)]
    writers.append(ask(service, b"9", priority_level=1))
    until(lambda: waiting_for_an_encoder(service) == 9)
    encoder.go.set()
    assert [writer.code for writer in writers] == [""] * 10
    assert encoder.calls[1] == b"9"


def test_a_known_image_does_not_wait_for_the_encoder(start: Start, encoder: Encoder) -> None:
    service = start(encode_workers=1)
    assert ask(service, b"1").code == ""
    encoder.go.clear()
    waiting = ask(service, b"2")
    until(lambda: encoder.calls == [b"1", b"2"])
    assert details(ask(service, b"1")).cache_hit
    assert not waiting.ended.is_set()
    encoder.go.set()
    assert waiting.code == ""


def test_an_encoder_that_never_answers_fails_its_requests_only(start: Start, encoder: Encoder) -> None:
    service = start(encode_workers=1, encode_timeout_s=1)
    encoder.go.clear()
    lost = ask(service, b"1")
    assert lost.code == "ENCODER_STALLED"
    assert "no answer within 1 s" in str(lost.errors[0])
    encoder.go = threading.Event()
    encoder.go.set()
    assert captioned(ask(service, b"2")) == alone(2)
    assert service._engine.load().waiting == 0


def test_a_client_with_many_requests_gives_a_place_to_one_with_few(
    start: Start, encoder: Encoder, metrics: dict[str, float]
) -> None:
    service = start(slots=1, max_waiting=4, encode_workers=1)
    encoder.go.clear()
    flood = [ask(service, str(number).encode(), client_id="flood") for number in range(5)]
    until(lambda: encoder.calls == [b"0"])
    until(lambda: waiting_for_an_encoder(service) == 4)
    assert ask(service, b"8", client_id="flood").code == "SERVER_BUSY"
    single = ask(service, b"9", client_id="single")
    assert flood[-1].code == "SERVER_BUSY"
    until(lambda: waiting_for_an_encoder(service) == 4)
    encoder.go.set()
    assert captioned(single) == alone(9)
    assert [writer.code for writer in flood[:-1]] == [""] * 4
    assert encoder.calls[1] == b"9"
    until(lambda: metrics.get("captioner_refused_total{SERVER_BUSY}") == 2)


def test_a_prompt_far_beyond_the_limit_is_refused_before_it_is_tokenized(
    service: CaptionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._model, "_tokenizer", None)
    for prompt in (b"a cat " * 3_333_333, "é".encode() * 32_769):
        began = time.monotonic()
        writer = ask(service, prompt=prompt)
        assert writer.code == "PROMPT_TOO_LONG"
        assert "the limit is 32768" in str(writer.errors[0])
        assert time.monotonic() - began < 0.1


def test_a_file_beyond_the_limit_is_refused_before_it_is_encoded(service: CaptionService, encoder: Encoder) -> None:
    writer = ask(service, bytes(30 * 2**20))
    assert writer.code == "IMAGE_TOO_LARGE"
    assert encoder.calls == []


@pytest.mark.parametrize("request_", [{"prompt": b"a<|eos|>b"}, {"style": "named", "name": "Ada<|bos|>"}])
def test_a_control_token_in_a_clients_text_is_refused(service: CaptionService, request_: dict[str, Any]) -> None:
    writer = ask(service, **request_)
    assert writer.code == "PARAMETER_INVALID"
    assert "a control token of this model" in str(writer.errors[0])


@pytest.mark.parametrize("choice", [{"style": "named"}, {"length": "short"}, {"extras": '["x"]'}, {"name": "Ada"}])
def test_what_selects_a_prompt_is_refused_beside_one(service: CaptionService, choice: dict[str, Any]) -> None:
    writer = ask(service, prompt=b"a cat", **choice)
    assert writer.code == "PARAMETER_INVALID"
    assert f"{next(iter(choice))} is given together with a prompt" in str(writer.errors[0])


@pytest.mark.parametrize("blank", [b"", b" \n"])
def test_a_blank_prompt_is_none(service: CaptionService, blank: bytes) -> None:
    assert details(ask(service, prompt=blank)).prompt == details(ask(service)).prompt


def test_max_tokens_beyond_the_room_is_refused_or_reduced_to_it(service: CaptionService) -> None:
    assert ask(service, max_tokens=2048).code == "PARAMETER_INVALID"
    reduced = details(ask(service, max_tokens=2048, fit_max_tokens=True))
    assert reduced.max_tokens + reduced.prompt_tokens == tiny.CONTEXT
    assert details(ask(service, max_tokens=3, fit_max_tokens=True)).max_tokens == 3


def test_a_token_of_the_models_own_prompts_may_be_in_a_prompt(service: CaptionService) -> None:
    assert details(ask(service, prompt=tiny.SHORT.encode())).prompt == tiny.SHORT


def test_a_request_that_cannot_be_polled_does_not_hide_the_others(start: Start, encoder: Encoder) -> None:
    class Broken(Recorder):
        def is_cancelled(self) -> bool:
            raise BrokenPipeError("gone")

    service = start()
    encoder.go.clear()
    broken = [ask(service, b"1", writer=Broken()) for _ in range(3)]
    leaving = ask(service, b"2")
    broken += [ask(service, b"3", writer=Broken()) for _ in range(3)]
    leaving.cancelled = True
    assert leaving.code == "CANCELLED"
    encoder.go.set()
    assert all(writer.code == "" for writer in broken)


@pytest.mark.parametrize("image", [b"1", b"shape", b"broken"])
def test_features_and_images_of_finished_requests_are_freed_without_the_garbage_collector(
    start: Start, encoder: Encoder, image: bytes
) -> None:
    features: list[weakref.ref[Any]] = []

    images: list[int] = []

    class Image(bytes):
        """Bytes that can be watched."""

        def __del__(self) -> None:
            images.append(len(self))

    def encode(data: bytes) -> Encoded:
        encoded = encoder(bytes(data))
        features.append(weakref.ref(encoded.features))
        return encoded

    service = start(feature_cache_mib=0)
    service._encode = encode
    gc.disable()
    try:
        for _ in range(20):
            ask(service, Image(image)).ended.wait(20)
        until(lambda: not any(array() is not None for array in features) and len(images) == 20)
    finally:
        gc.enable()
