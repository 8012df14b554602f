"""The whole path on a real tritonserver with the embedded model: every endpoint gives the same caption."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from benchmarks.images import crops
from captioner import errors
from captioner.client import AsyncClient, Client
from captioner.examples import FOLDER
from tests.support.served import Served, metric

pytestmark = pytest.mark.triton

PHOTO = FOLDER / "cat.jpg"


@pytest.fixture
def client(served: Served) -> Any:
    with Client(served.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def greedy(served: Served) -> str:
    """The caption that the command line prints."""
    return cli("caption", "--server", served.grpc, str(PHOTO)).stdout.strip()


def cli(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "captioner.cli", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def generate(served: Served, verb: str, body: dict[str, object]) -> tuple[int, str]:
    """POST to Triton's own HTTP endpoint; return status and body."""
    request = urllib.request.Request(
        f"http://{served.http}/v2/models/captioner/{verb}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},  # see docs/architecture.md: a form of some MiB crashes Triton 2.51
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def raw_stream(served: Served, data: bytes, timeout_us: int | None = None, **parameters: Any) -> list[tuple[Any, Any]]:
    """Return every (result, error) of one request through plain tritonclient, including the empty final one."""
    answers: Queue[tuple[Any, Any]] = Queue()
    client = tritonclient.grpc.InferenceServerClient(served.grpc)
    client.start_stream(lambda result, error: answers.put((result, error)))
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([data], dtype=np.object_))
    client.async_stream_infer(
        "captioner", [image], parameters=parameters, timeout=timeout_us, enable_empty_final_response=True
    )
    received = []
    while True:
        received.append(answers.get(timeout=60))
        result, error = received[-1]
        if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
            break
    time.sleep(0.05)  # nothing may follow the final response
    assert answers.empty(), "a response came after the final one"
    client.stop_stream()
    client.close()
    return received


def text(result: Any, name: str = "caption") -> str:
    value: str = result.as_numpy(name)[0].decode()
    return value


def test_the_caption_is_a_sentence_about_something(greedy: str) -> None:
    assert len(greedy.split()) >= 4, greedy


def test_every_endpoint_gives_the_same_greedy_caption(served: Served, client: Client, greedy: str) -> None:
    encoded = base64.b64encode(PHOTO.read_bytes()).decode()
    assert client.caption(PHOTO).text == greedy
    assert client.caption(PHOTO.read_bytes()).text == greedy
    assert "".join(client.stream(PHOTO)) == greedy
    assert "".join(text(r) for r, _ in raw_stream(served, PHOTO.read_bytes())) == greedy
    status, body = generate(served, "generate", {"image": encoded})
    assert (status, json.loads(body)["caption"]) == (200, greedy)
    status, body = generate(served, "generate", {"image": f"data:image/jpeg;base64,{encoded}"})
    assert (status, json.loads(body)["caption"]) == (200, greedy)
    status, body = generate(served, "generate_stream", {"image": encoded, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line]
    assert "".join(event["caption"] for event in events) == greedy
    longer = {"image": encoded, "stream": True, "length": "long"}  # a short caption may leave in two pieces
    events = [line for line in generate(served, "generate_stream", longer)[1].splitlines() if line]
    assert len(events) > 2, "generate_stream sent the caption in one piece"


def test_a_grpc_stream_sends_text_while_it_is_written_and_details_at_the_end(served: Served) -> None:
    results = [result for result, error in raw_stream(served, PHOTO.read_bytes(), length="long")]
    assert len(results) > 3
    assert all(text(result, "details") == "" for result in results[:-1])
    details = json.loads(text(results[-1], "details"))
    assert details["finish_reason"] == "stop"
    assert details["image"]["format"] == "JPEG"
    assert details["prompt"] == "<|long|>"
    assert details["timings_ms"]["first_token"] <= details["timings_ms"]["total"]


def test_short_medium_and_long_captions_differ_in_length(client: Client) -> None:
    words = {name: len(client.caption(PHOTO, length=name).text.split()) for name in ("short", "medium", "long")}
    assert words["short"] < words["medium"] < words["long"], words


def test_a_seed_reproduces_its_caption_and_another_seed_does_not(client: Client) -> None:
    captions = [client.caption(PHOTO, temperature=1.2, seed=seed, length="long") for seed in (1, 1, 2)]
    assert captions[0].text == captions[1].text
    assert captions[0].text != captions[2].text
    assert captions[2].details.seed == 2


def test_a_random_seed_is_reported_and_reproduces_the_caption(client: Client) -> None:
    drawn = client.caption(PHOTO, temperature=1.0)
    assert client.caption(PHOTO, temperature=1.0, seed=drawn.details.seed).text == drawn.text


def test_a_prompt_is_continued(client: Client) -> None:
    caption = client.caption(PHOTO, prompt="A close view of")
    assert caption.text.startswith("A close view of ")
    assert caption.details.prompt == "A close view of"


def test_sixteen_concurrent_requests_get_the_captions_that_each_gets_alone(served: Served) -> None:
    images = list(islice(crops(seed=1), 16))

    async def caption_all() -> tuple[list[str], list[str]]:
        async with AsyncClient(served.grpc) as client:
            alone = [(await client.caption(image)).text for image in images]
            together = await asyncio.gather(*(client.caption(image, stream=True) for image in images))
            return alone, [caption.text for caption in together]

    alone, together = asyncio.run(caption_all())
    assert together == alone
    assert len(set(alone)) > 4, "the images are too similar to show a mix-up"


def test_cancelling_ends_decoding_within_a_step_and_100_ms(served: Served, client: Client) -> None:
    steps, cancelled = [], metric(served, "captioner_cancelled_total")
    for attempt in range(5):
        with client.stream(PHOTO, length="long", temperature=2.0, seed=attempt, max_tokens=80) as stream:
            next(stream)
        began = time.perf_counter()
        while metric(served, "captioner_running") > 0:
            assert time.perf_counter() - began < 5, "the caption is still being decoded"
        steps.append(time.perf_counter() - began)
    time.sleep(0.1)  # the metrics of one poll are reported one after the other
    before = metric(served, "captioner_tokens_total")
    time.sleep(0.3)
    assert metric(served, "captioner_tokens_total") == before
    assert metric(served, "captioner_cancelled_total") > cancelled
    step_ms = 25  # of a busy machine; the gauge itself is updated every 50 ms
    assert sorted(steps)[2] * 1000 < 100 + step_ms + 50, steps


def file_of(file_format: str, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, file_format)
    return file.getvalue()


BAD = {
    "nothing": (b"", "IMAGE_MISSING"),
    "a document": (b"%PDF-1.7 not an image at all", "IMAGE_FORMAT_UNKNOWN"),
    "text": (b"please caption this", "IMAGE_FORMAT_UNKNOWN"),
    "a vector drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT_UNKNOWN"),
    "half a JPEG": (PHOTO.read_bytes()[:2000], "IMAGE_BROKEN"),
    "half a PNG": (file_of("PNG")[:-100], "IMAGE_BROKEN"),
    "half a WebP": (file_of("WEBP")[:-20], "IMAGE_BROKEN"),
    "half a GIF": (file_of("GIF")[:-200], "IMAGE_BROKEN"),
    "a speck": (file_of("PNG", (4, 4)), "IMAGE_TOO_SMALL"),
    "a strip": (file_of("PNG", (20_000, 8)), "IMAGE_TOO_LARGE"),
    "too many bytes": (b"\xff\xd8\xff" + bytes(20 * 2**20), "IMAGE_TOO_LARGE"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_with_its_code_and_the_next_photo_is_captioned(
    served: Served, client: Client, greedy: str, kind: str
) -> None:
    data, code = BAD[kind]
    _, error = raw_stream(served, data)[-1]
    assert error is not None and errors.from_wire(error.message()).code == code
    status, body = generate(served, "generate", {"image": base64.b64encode(data).decode()})
    assert status == 400 and errors.from_wire(json.loads(body)["error"]).code == code
    assert client.caption(PHOTO).text == greedy


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"style": "haiku"}, "PARAMETER_UNSUPPORTED"),
        ({"length": "endless"}, "PARAMETER_UNSUPPORTED"),
        ({"temperature": 2.5}, "PARAMETER_INVALID"),
        ({"max_tokens": 0}, "PARAMETER_INVALID"),
        ({"max_tokens": 2000}, "PARAMETER_INVALID"),
        ({"color": "red"}, "PARAMETER_UNKNOWN"),
        ({"seed": "seven"}, "PARAMETER_INVALID"),
        ({"extras": "[1]"}, "PARAMETER_INVALID"),
        ({"name": "Mia"}, "PARAMETER_UNSUPPORTED"),
    ],
)
def test_a_bad_parameter_is_refused_with_its_code_and_the_next_photo_is_captioned(
    served: Served, client: Client, greedy: str, parameters: dict[str, Any], code: str
) -> None:
    _, error = raw_stream(served, PHOTO.read_bytes(), **parameters)[-1]
    assert error is not None and errors.from_wire(error.message()).code == code
    image = base64.b64encode(PHOTO.read_bytes()).decode()
    status, body = generate(served, "generate", {"image": image} | parameters)
    assert status == 400 and errors.from_wire(json.loads(body)["error"]).code == code
    assert client.caption(PHOTO).text == greedy


def test_a_deadline_that_passes_before_the_first_token_is_an_error(served: Served) -> None:
    _, error = raw_stream(served, next(crops(seed=9)), deadline_ms=1)[-1]
    assert error is not None and errors.from_wire(error.message()).code == "DEADLINE_EXCEEDED"


def test_tritonclients_timeout_is_a_deadline(served: Served) -> None:
    _, error = raw_stream(served, next(crops(seed=10)), timeout_us=1000)[-1]
    assert error is not None and errors.from_wire(error.message()).code == "DEADLINE_EXCEEDED"
    _, error = raw_stream(served, next(crops(seed=10)), timeout_us=30_000_000)[-1]
    assert error is None


def test_a_deadline_that_passes_later_ends_the_caption_with_the_finish_reason_deadline(client: Client) -> None:
    client.caption(PHOTO)  # its features are in the feature cache from here on
    for deadline_ms in range(100, 0, -5):  # how long the caption takes depends on the machine
        caption = client.caption(PHOTO, temperature=2.0, max_tokens=90, deadline_ms=deadline_ms, seed=1)
        if caption.details.finish_reason == "deadline":
            break
    assert caption.details.finish_reason == "deadline"
    assert 0 < caption.details.tokens < 90


def test_a_request_without_an_image_is_refused(served: Served) -> None:
    status, body = generate(served, "generate", {"stream": False})
    assert status == 400 and "IMAGE_MISSING" in body


def test_a_prompt_that_is_not_utf8_is_refused(served: Served) -> None:
    client = tritonclient.grpc.InferenceServerClient(served.grpc)
    answers: Queue[tuple[Any, Any]] = Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = []
    for name, value in (("image", PHOTO.read_bytes()), ("prompt", b"\xff\xfe")):
        tensor = tritonclient.grpc.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([value], dtype=np.object_))
        inputs.append(tensor)
    client.async_stream_infer("captioner", inputs)
    _, error = answers.get(timeout=30)
    client.stop_stream()
    assert error is not None and "PARAMETER_INVALID" in error.message()


def test_features_come_from_preprocess_and_the_vision_encoder(served: Served) -> None:
    client = tritonclient.http.InferenceServerClient(served.http)
    image = tritonclient.http.InferInput("image", [2, 1], "BYTES")
    image.set_data_from_numpy(np.array([[PHOTO.read_bytes()], [(FOLDER / "coffee.jpg").read_bytes()]], dtype=object))
    decoded = client.infer("preprocess", [image]).as_numpy("pixels")
    assert decoded is not None
    pixels = tritonclient.http.InferInput("pixels", list(decoded.shape), "UINT8")
    pixels.set_data_from_numpy(decoded)
    features = client.infer("vision_encoder", [pixels]).as_numpy("features")
    assert features is not None and features.shape[0] == 2
    assert not np.allclose(features[0], features[1])
    client.close()


def test_a_refused_image_in_a_burst_does_not_fail_the_others(served: Served, greedy: str) -> None:
    async def burst() -> list[Any]:
        async with AsyncClient(served.grpc) as client:
            images = [PHOTO.read_bytes(), PHOTO.read_bytes()[:1000]] * 8
            return await asyncio.gather(*(client.caption(image) for image in images), return_exceptions=True)

    answers = asyncio.run(burst())
    assert [str(answer) for answer in answers[::2]] == [greedy] * 8
    assert all(isinstance(answer, errors.ImageBroken) for answer in answers[1::2])


def test_requests_beyond_the_slots_and_the_queue_are_refused_and_the_others_are_served(served: Served) -> None:
    async def flood() -> list[Any]:
        async with AsyncClient(served.grpc) as client:
            images = islice(crops(seed=2, size_px=64), 120)
            return await asyncio.gather(*(client.caption(image) for image in images), return_exceptions=True)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if isinstance(answer, errors.ServerBusy)]
    assert 1 <= len(refused) <= 120 - 80, "16 slots and 64 waiting requests"
    assert all(answer in refused or str(answer) for answer in answers)
    assert not [answer for answer in answers if isinstance(answer, Exception) and answer not in refused]


def test_the_probe_verb_prints_a_caption(served: Served) -> None:
    assert cli("probe", "--server", served.grpc).stdout.strip()


def test_an_unreachable_server_is_named() -> None:
    with Client("127.0.0.1:9") as client, pytest.raises(errors.ServerUnreachable, match=r"127\.0\.0\.1:9"):
        client.caption(PHOTO)


def test_the_command_line_captions_the_readable_files_and_names_the_others(served: Served, tmp_path: Path) -> None:
    broken = tmp_path / "broken.webp"
    broken.write_bytes(b"RIFF\x00\x00\x00\x00WEBPVP8 ")
    done = cli("caption", "--server", served.grpc, str(broken), str(PHOTO), code=1)
    assert done.stdout.startswith(f"{PHOTO}: ") and done.stdout.count("\n") == 1
    assert f"{broken}: IMAGE_BROKEN: " in done.stderr


def test_beams_stop_texts_and_the_guard_mean_the_same_at_every_endpoint(client: Client, served: Served) -> None:
    whole = client.caption(PHOTO, num_beams=3)
    assert whole.details.num_beams == 3
    stop = whole.text.split()[3]
    cut = client.caption(PHOTO, num_beams=3, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.details.finish_reason == "stop"
    image = base64.b64encode(PHOTO.read_bytes()).decode()
    body: dict[str, object] = {"image": image, "num_beams": 3, "stop": json.dumps([stop]), "repetition_guard": True}
    status, text = generate(served, "generate", body)
    assert status == 200 and json.loads(text)["caption"] == cut.text


def test_the_repetition_guard_ends_a_looping_text(client: Client) -> None:
    looping: dict[str, Any] = {"repetition_penalty": 0.5, "length": "long"}  # below 1, the model repeats itself
    photo = FOLDER / "astronaut.jpg"
    guarded, free = client.caption(photo, **looping), client.caption(photo, repetition_guard=False, **looping)
    assert guarded.details.finish_reason == "repetition"
    assert free.details.finish_reason != "repetition"
    assert free.text.startswith(guarded.text) and free.details.tokens > guarded.details.tokens


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=pytest.mark.exhaustive)])
def test_environment_variables_set_precision_and_slots(
    repository: Path, start_triton: Any, monkeypatch: pytest.MonkeyPatch, greedy: str, precision: str
) -> None:
    monkeypatch.setenv("CAPTIONER_PRECISION", precision)
    monkeypatch.setenv("CAPTIONER_SLOTS", "3")
    server = start_triton(repository)
    with Client(server.grpc_address) as client:
        card = client.describe()
        assert (card.device, card.precision) == ("cpu", precision)
        assert {"cat"} <= set(client.caption(PHOTO).text.split()) & set(greedy.split())
        with pytest.raises(errors.ParameterInvalid, match="num_beams is 4; this server has 3 slots"):
            client.caption(PHOTO, num_beams=4)
    log = next(path for path in server.log_path.parent.glob("*.log")).read_text()
    assert f"on cpu in {precision}: " in log and "MiB of weights, 3 slots x" in log and "decode threads 1" in log


@pytest.mark.parametrize("limit", [12, 30, 60])
def test_max_characters_limits_streamed_and_whole_captions(client: Client, limit: int) -> None:
    free = client.caption(PHOTO, length="long")
    whole = client.caption(PHOTO, length="long", max_characters=limit)
    with client.stream(PHOTO, length="long", max_characters=limit) as stream:
        assert "".join(stream) == whole.text
    assert 0 < len(whole.text) <= limit < len(free.text)
    assert free.text.startswith(whole.text)
    assert whole.details.finish_reason == "length" and whole.details.max_characters == limit
    assert whole.details.tokens < free.details.tokens
