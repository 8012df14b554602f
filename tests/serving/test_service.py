"""The entry's behaviour without Triton: a real decoder and tokenizer, an encoder that turns numbers into features."""

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

from captioner.artifacts.manifest import Calibration, Manifest
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.engine.engine import Engine
from captioner.errors import CaptionerError, ImageBroken, StartupRefused
from captioner.serving.feature_cache import Encoded
from captioner.serving.served_model import CaptionRequest, ServedModel
from captioner.serving.service import CaptionService
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service
from captioner.wire import Details, ImageInfo, ModelCard
from tests.support import tiny
from tests.support.tiny import Recorder

HAS_KERNEL = has_avx512bf16()  # type: ignore[no-untyped-call]  # bitsandbytes' own, for nf4 on a CPU
INFO = ImageInfo("PNG", 640, 480, 1, rotated=False, alpha=False)
TOKENS = tiny.tokenizer()
LONG = b"4"  # an image whose caption goes on to the limit


class Encoder:
    """Stands where image_encoder's model stands: an image is the number of its features, or an order to fail."""

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
            return Encoded(np.full((tiny.FEATURE_TOKENS, tiny.FEATURE_WIDTH), None), INFO)
        return Encoded(tiny.features(int(image)).numpy(), INFO)


Start = Callable[..., CaptionService]


def served(manifest: Manifest, engine: Engine) -> ServedModel:
    return ServedModel(manifest, "1", "cpu", "fp32", TOKENS, engine.load().slots)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def shown() -> dict[str, float]:
    """The metrics as last shown."""
    return {}


@pytest.fixture
def start(encoder: Encoder, shown: dict[str, float]) -> Iterator[Start]:
    services = []

    def begin(**settings: Any) -> CaptionService:
        folder = tiny.published()
        chosen = Settings(**({"slots": 4, "cancel_poll_ms": 5} | settings))
        services.append(load_service(folder.parent, folder.name, None, chosen, encoder, shown.update))
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
    reply: Recorder | None = None,
    **parameters: Any,
) -> Recorder:
    """Hands a request over and returns at once."""
    reply = reply or Recorder()
    service.handle(CaptionRequest(image, prompt, parameters, streaming), reply)
    return reply


def details(reply: Recorder) -> Details:
    assert reply.code == "", reply.errors
    return Details.from_json(reply.details[-1])


def alone(image: int, prompt: str = tiny.SHORT, max_tokens: int = 20) -> str:
    """The greedy caption, made without service, engine or cache."""
    ids = [0, *TOKENS.encode(prompt, add_special_tokens=False).ids]
    tokens = tiny.greedy(tiny.features(image), ids, max_tokens)
    text: str = TOKENS.decode([*ids, *tokens], skip_special_tokens=True)
    return text.lstrip()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come about in 20 s"
        time.sleep(0.005)


@pytest.mark.parametrize("image", range(6))
def test_the_pieces_of_a_stream_join_to_the_caption(service: CaptionService, image: int) -> None:
    reply = ask(service, str(image).encode())
    assert reply.code == ""
    assert reply.text == alone(image)
    assert [bool(text) for text in reply.details] == [False] * (len(reply.details) - 1) + [True]


@pytest.mark.parametrize(
    ("door", "wish", "streams"),
    [(True, {}, True), (False, {}, False), (True, {"stream": False}, False), (False, {"stream": True}, True)],
)
def test_the_door_says_whether_text_streams_unless_the_request_does(
    service: CaptionService, door: bool, wish: dict[str, Any], streams: bool
) -> None:
    reply = ask(service, LONG, streaming=door, **wish)
    assert reply.code == ""
    assert (len(reply.pieces) > 1) == streams
    assert reply.text == alone(4)


def test_the_details_say_how_the_caption_came_to_be(service: CaptionService) -> None:
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


def test_a_caption_that_ends_by_itself_says_stop(service: CaptionService) -> None:
    found = details(ask(service, b"1", max_tokens=40))
    assert found.finish_reason == "stop"
    assert found.tokens < 40


def test_the_seed_in_the_details_makes_the_caption_again(service: CaptionService) -> None:
    first = ask(service, temperature=1.3, top_p=0.9)
    again = ask(service, temperature=1.3, top_p=0.9, seed=details(first).seed)
    other = ask(service, temperature=1.3, top_p=0.9)
    assert details(again).seed == details(first).seed != details(other).seed
    assert again.text == first.text != other.text


def test_a_prompt_is_used_as_it_is_and_its_words_begin_the_caption(service: CaptionService) -> None:
    reply = ask(service, b"2", "a dog 猫".encode())
    assert details(reply).prompt == "a dog 猫"
    assert reply.text.startswith("a dog 猫")
    assert reply.text == alone(2, "a dog 猫")


def test_a_name_stands_in_the_prompt(service: CaptionService) -> None:
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
def test_what_cannot_be_done_is_refused_by_code_and_name(
    service: CaptionService, request_: dict[str, Any], code: str, named: str
) -> None:
    reply = ask(service, **request_)
    assert reply.code == code
    assert named in str(reply.errors[0])
    assert reply.pieces == []
    good = ask(service, b"3")
    assert good.code == ""
    assert good.text == alone(3)


def test_the_longest_prompt_leaves_room_for_one_token(service: CaptionService) -> None:
    prompt = b"~" * 46
    assert len(TOKENS.encode(prompt.decode()).ids) == tiny.CONTEXT - 2
    assert details(ask(service, LONG, prompt)).max_tokens == 1
    assert ask(service, LONG, prompt + b"~").code == "PROMPT_TOO_LONG"


def test_a_refused_parameter_costs_no_encoding(service: CaptionService, encoder: Encoder) -> None:
    assert ask(service, style="poem").code == "PARAMETER_UNSUPPORTED"
    assert encoder.calls == []


def test_describe_answers_with_the_models_card(service: CaptionService, encoder: Encoder) -> None:
    reply = ask(service, None, describe=True)
    assert reply.code == ""
    card = ModelCard.from_json(reply.details[0])
    assert card.styles == {"plain": ["short", "long"], "named": ["short"]}
    assert (card.extras, card.takes_name, card.max_tokens, card.device) == (
        {"camera": "in the fog"},
        True,
        20,
        "cpu",
    )
    assert card.prompts["plain"]["short"] == tiny.SHORT
    assert reply.pieces == [""]
    assert encoder.calls == []


def test_an_image_seen_before_is_not_encoded_again(start: Start, encoder: Encoder, shown: dict[str, float]) -> None:
    service = start()
    assert [details(ask(service, image)).cache_hit for image in (b"1", b"2", b"1", b"1")] == [False, False, True, True]
    assert encoder.calls == [b"1", b"2"]
    until(lambda: shown.get("captioner_cache_hits_total") == 2)


class Slow(CrossAttentionDecoder):
    """The real decoder at 100 tokens a second, so that there is time to leave."""

    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        time.sleep(0.01)
        return super().decode(ids_B, positions_B, span)


def test_a_client_that_leaves_frees_its_slot_within_a_few_tokens(encoder: Encoder, shown: dict[str, float]) -> None:
    engine = Engine(tiny.runner(1, Slow), (), max_waiting=4)
    manifest, settings = Manifest.load(tiny.published()), Settings(slots=1, cancel_poll_ms=5)
    service = CaptionService(served(manifest, engine), engine, encoder, shown.update, settings)
    leaving = ask(service, LONG, max_tokens=46)
    until(lambda: bool(leaving.pieces))
    leaving.cancelled = True
    assert leaving.code == "CANCELLED"
    assert engine.load().tokens < 30
    after = ask(service, b"1", max_tokens=5)
    assert details(after).tokens == 5
    until(lambda: shown["captioner_running"] == 0)
    assert shown["captioner_cancelled_total"] == 1
    service.close()


@pytest.mark.parametrize("slots", [1, 3])
def test_a_full_server_says_so_at_once_and_serves_who_it_took(start: Start, encoder: Encoder, slots: int) -> None:
    service = start(slots=slots, max_waiting=2, encode_workers=2)
    encoder.go.clear()
    taken = [ask(service, str(number).encode()) for number in range(slots + 2)]
    refused = ask(service, b"9")
    assert refused.code == "SERVER_BUSY"
    assert "retry in" in str(refused.errors[0])
    assert not any(reply.ended.is_set() for reply in taken)
    encoder.go.set()
    assert [reply.code for reply in taken] == [""] * len(taken)
    assert [reply.text for reply in taken] == [alone(number) for number in range(len(taken))]
    assert ask(service, b"9").code == "", "the places are free again"


def test_who_leaves_while_waiting_for_the_encoder_gives_the_place_back(start: Start, encoder: Encoder) -> None:
    service = start(slots=1, max_waiting=1, encode_workers=1)
    encoder.go.clear()
    staying, leaving = ask(service, b"1"), Recorder()
    until(lambda: encoder.calls == [b"1"])
    leaving.cancelled = True
    ask(service, b"2", reply=leaving)
    time.sleep(0.1)  # several rounds of asking
    encoder.go.set()
    assert leaving.code == "CANCELLED"
    assert staying.text == alone(1) or staying.code == ""
    assert encoder.calls == [b"1"], "nobody wants the second image"


def test_a_deadline_that_passes_before_the_first_token_is_an_error(start: Start, encoder: Encoder) -> None:
    service = start()
    encoder.go.clear()
    reply = ask(service, deadline_ms=30)
    time.sleep(0.1)
    encoder.go.set()
    assert reply.code == "DEADLINE_EXCEEDED"
    assert reply.pieces == []


def test_two_hundred_requests_of_every_kind_are_answered_once_each(start: Start, shown: dict[str, float]) -> None:
    service = start(slots=5, max_waiting=300)
    kinds: list[dict[str, Any]] = [
        {}, {"image": b"broken"}, {"image": b"shape"}, {"style": "poem"}, {"temperature": 1.5}, {"image": None},
        {"max_tokens": 1}, {"describe": True}, {"deadline_ms": 1}, {"priority_level": 1}, {"image": b"bug"},
        {"stream": False},
    ]  # fmt: skip
    replies = [Recorder(lambda: time.sleep(random.random() / 1000)) for _ in range(200)]

    def client(numbers: range) -> None:
        for number in numbers:
            ask(service, reply=replies[number], **({"image": str(number % 7).encode()} | kinds[number % len(kinds)]))
            replies[number].cancelled = number % 11 == 3

    threads = [threading.Thread(target=client, args=(range(first, 200, 8),)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [reply.code for reply in replies]
    time.sleep(0.1)
    assert {reply.finals for reply in replies} == {1}
    assert not any(reply.asked_after_the_end for reply in replies)
    assert set(codes) <= {
        "", "IMAGE_BROKEN", "ARTEFACT_BROKEN", "PARAMETER_UNSUPPORTED", "IMAGE_MISSING", "INTERNAL", "CANCELLED",
        "DEADLINE_EXCEEDED",
    }  # fmt: skip
    until(lambda: shown["captioner_running"] == shown["captioner_waiting"] == 0)
    assert shown["captioner_captions_total"] == sum(
        not code and "describe" not in kinds[number % len(kinds)] for number, code in enumerate(codes)
    )
    assert shown["captioner_cancelled_total"] == codes.count("CANCELLED")
    assert shown["captioner_refused_total"] == sum(code not in ("", "CANCELLED") for code in codes)


class Deaf(Recorder):
    """Keeps nothing that could keep it."""

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
def test_an_ended_request_frees_its_way_back_at_once_and_without_the_collector(
    service: CaptionService, image: bytes | None, parameters: dict[str, Any]
) -> None:
    reply = Deaf()
    freed = weakref.ref(reply)
    gc.disable()
    try:
        ask(service, image, reply=reply, **parameters)
        assert reply.ended.wait(20)
        del reply
        until(lambda: freed() is None)
    finally:
        gc.enable()


def test_who_left_frees_his_way_back_as_well(service: CaptionService) -> None:
    reply = Deaf()
    freed = weakref.ref(reply)
    gc.disable()
    try:
        reply.cancelled = True
        ask(service, LONG, reply=reply)
        assert reply.ended.wait(20)
        del reply
        until(lambda: freed() is None)
    finally:
        gc.enable()


def test_closing_answers_everyone_and_then_refuses(start: Start, encoder: Encoder) -> None:
    service = start(slots=2, encode_workers=2)
    encoder.go.clear()
    replies = [ask(service, str(number).encode()) for number in range(6)]
    closing = threading.Thread(target=service.close)
    closing.start()
    until(lambda: ask(service, b"1").code == "SERVER_STOPPING")
    encoder.go.set()
    closing.join(20)
    assert not closing.is_alive()
    assert [reply.text for reply in replies] == [alone(number) for number in range(6)]
    assert all(reply.finals == 1 for reply in replies)


def test_the_metrics_are_shown_by_name(start: Start, shown: dict[str, float]) -> None:
    service = start(slots=4)
    found = details(ask(service, b"0"))
    until(lambda: shown.get("captioner_captions_total") == 1)
    assert (shown["captioner_slots"], shown["captioner_tokens_total"]) == (4, found.tokens)
    assert shown["captioner_time_to_first_token_ms_total"] == pytest.approx(found.timings_ms.first_token, abs=0.1)


def test_details_are_json_that_any_client_reads(service: CaptionService) -> None:
    reply = ask(service)
    assert reply.code == ""

    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    json.loads(reply.details[-1], parse_constant=no_constant)


def test_a_stop_text_ends_the_caption_before_it_and_streams_nothing_of_it(service: CaptionService) -> None:
    whole = alone(4)
    stop = whole[5:8]
    for streaming in (True, False):
        reply = ask(service, LONG, streaming=streaming, stop=json.dumps([stop, "never written"]))
        found = details(reply)
        assert reply.text == whole[: whole.index(stop)]
        assert found.finish_reason == "stop"
        assert found.tokens < details(ask(service, LONG)).tokens


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_beams_write_what_generate_writes(service: CaptionService, num_beams: int) -> None:
    ids = [0, *TOKENS.encode(tiny.SHORT, add_special_tokens=False).ids]
    for image in range(3):
        written = tiny.generate(image, ids, max_new_tokens=20, num_beams=num_beams)
        reply = ask(service, str(image).encode(), num_beams=num_beams)
        found = details(reply)
        assert reply.text == TOKENS.decode([*ids, *written], skip_special_tokens=True).lstrip()
        assert (found.num_beams, found.tokens) == (num_beams, len(written))
        assert found.mean_logprob < 0


def test_beams_and_single_captions_share_the_slots(service: CaptionService) -> None:
    expected = [ask(service, str(number % 5).encode(), num_beams=1 + number % 4) for number in range(4)]
    assert [reply.code for reply in expected] == [""] * 4
    crowd = [ask(service, str(number % 5).encode(), num_beams=1 + number % 4) for number in range(40)]
    assert [reply.code for reply in crowd] == [""] * 40
    for number, reply in enumerate(crowd):
        assert reply.text == ask_alone(service, number % 5, 1 + number % 4)


def ask_alone(service: CaptionService, image: int, num_beams: int) -> str:
    reply = ask(service, str(image).encode(), num_beams=num_beams)
    assert reply.code == ""
    return reply.text


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"num_beams": 5}, "num_beams is 5; this server has 4 slots"),
        ({"num_beams": 2, "temperature": 0.7}, "one of the two must go"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 6}, "num_beams is 6"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"style": "haiku"}, "'haiku'"),
        ({"stop": "[1]"}, "stop is"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_before_anything_runs(
    service: CaptionService, encoder: Encoder, parameters: dict[str, Any], named: str
) -> None:
    reply = ask(service, **parameters)
    assert reply.code.startswith("PARAMETER_")
    assert named in str(reply.errors[0])
    assert encoder.calls == []


def test_a_prompt_longer_than_the_context_is_refused_by_name(service: CaptionService, encoder: Encoder) -> None:
    reply = ask(service, prompt=b"cat " * 60)
    assert reply.code == "PROMPT_TOO_LONG"
    assert f"the limit is {tiny.CONTEXT - 1}" in str(reply.errors[0])
    assert encoder.calls == []


def test_a_caption_that_loops_is_ended_and_says_so(service: CaptionService) -> None:
    looping: dict[str, Any] = {
        "repetition_penalty": 0.5,
        "max_tokens": 40,
    }  # below 1 the model is made to repeat itself
    guarded, free = ask(service, LONG, **looping), ask(service, LONG, repetition_guard=False, **looping)
    assert details(guarded).finish_reason == "repetition"
    assert details(free).finish_reason == "length"
    assert free.text.startswith(guarded.text)
    assert details(guarded).tokens < details(free).tokens


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_calibrated_model_says_how_likely_it_is_to_be_right(
    encoder: Encoder, shown: dict[str, float], threshold: float
) -> None:
    manifest = replace(Manifest.load(tiny.published()), calibration=Calibration(1.5, 2.0, unsure_below=threshold))
    engine = Engine(tiny.runner(2), manifest.stop_ids, max_waiting=4)
    service = CaptionService(served(manifest, engine), engine, encoder, shown.update, Settings())
    found = details(ask(service, b"1"))
    assert found.confidence == pytest.approx(1 / (1 + math.exp(-(1.5 * found.mean_logprob + 2.0))), abs=1e-3)
    assert found.unsure == (threshold == 1.0)
    service.close()


def test_nothing_of_a_request_is_kept_when_the_feature_cache_is_off(start: Start, encoder: Encoder) -> None:
    service = start(feature_cache_mib=0)
    replies = [ask(service, b"1") for _ in range(1)]
    assert [reply.code for reply in replies] == [""]
    assert not details(ask(service, b"1")).cache_hit
    assert encoder.calls == [b"1", b"1"]
    assert not service._jobs
    assert not service._features._kept
    assert not service._features._in_flight


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'; it must be auto or one of fp32, bf16, int8, nf4"),
        pytest.param(
            {"precision": "nf4"},
            "tiny cannot run in nf4 on cpu",
            marks=pytest.mark.skipif(not HAS_KERNEL, reason="only that kernel wants layers of whole blocks"),
        ),
        ({"slots": 100_000, "kv_cache_mib": 1}, "100000 slots need .* MiB of key/value cache; 1 MiB are there"),
    ],
)
def test_a_server_that_cannot_be_had_as_set_does_not_start(start: Start, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(StartupRefused, match=named):
        start(**settings)


def test_slots_come_from_the_memory_they_may_take(start: Start, shown: dict[str, float]) -> None:
    slot_bytes = tiny.decoder().slot_bytes
    service = start(slots=0, kv_cache_mib=1)
    assert service._engine.load().slots == min(2**20 // slot_bytes, 16)
    assert start(slots=3)._engine.load().slots == 3
