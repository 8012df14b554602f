"""The model `caption` on a real server: `infer` gives the client's caption, many at a time, and the same errors."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from benchmarks.images import crops
from captioner.client import Client
from captioner.errors import CaptionerError, from_wire
from captioner.examples import FOLDER
from captioner.serving.forwarder import MAX_FORWARDED
from captioner.wire import UNARY, UNARY_REQUESTS, Caption, ModelCard
from tests.support.served import Served, assert_soon, metric
from tests.support.unary import infer, inputs

pytestmark = pytest.mark.triton

PHOTO = (FOLDER / "cat.jpg").read_bytes()
LONG: dict[str, Any] = {"length": "long", "temperature": 2.0, "max_tokens": 80, "repetition_guard": False}
Infer = Callable[..., Caption]


@contextmanager
def connected(served: Served, protocol: str) -> Iterator[tuple[Any, Any]]:
    """Yield the module of tritonclient for `protocol`, and a client."""
    module = {"gRPC": tritonclient.grpc, "HTTP": tritonclient.http}[protocol]
    with module.InferenceServerClient(served.grpc if protocol == "gRPC" else served.http) as client:
        yield module, client


@pytest.fixture(params=["gRPC", "HTTP"])
def by_infer(served: Served, request: pytest.FixtureRequest) -> Iterator[Infer]:
    with connected(served, request.param) as (module, client):
        yield lambda *args, **kwargs: infer(module, client, *args, **kwargs)


@pytest.fixture
def by_grpc(served: Served) -> Iterator[Infer]:
    """Unlike a client for HTTP, this one may be used from many threads."""
    with connected(served, "gRPC") as (module, client):
        yield lambda *args, **kwargs: infer(module, client, *args, **kwargs)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc) as client:
        yield client


def post(served: Served, verb: str, body: dict[str, object]) -> tuple[int, Any]:
    """POST to the model's HTTP endpoint; return status and body."""
    request = urllib.request.Request(
        f"http://{served.http}/v2/models/{UNARY}/{verb}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_infer_gives_the_caption_of_the_client_and_its_details(by_infer: Infer, client: Client) -> None:
    expected, found = client.caption(PHOTO), by_infer(PHOTO)
    assert found.text == expected.text
    assert found.details.prompt == expected.details.prompt
    assert (found.details.finish_reason, found.details.image.format) == ("stop", "JPEG")


def test_infer_and_generate_in_plain_json_give_one_response(served: Served, client: Client) -> None:
    encoded, expected = base64.b64encode(PHOTO).decode(), client.caption(PHOTO, length="long").text
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
    status, body = post(served, "infer", {"inputs": [image], "parameters": {"length": "long"}})
    outputs = {output["name"]: output["data"] for output in body["outputs"]}
    assert (status, outputs["caption"], sorted(outputs)) == (200, [expected], ["caption", "details"])
    status, body = post(served, "generate", {"image": encoded, "length": "long"})
    assert (status, body["caption"]) == (200, expected)
    status, body = post(served, "infer", {"inputs": [], "parameters": {"describe": True}})
    card = next(output["data"][0] for output in body["outputs"] if output["name"] == "details")
    assert ModelCard.from_json(card) == client.describe()


def test_the_prompt_and_the_parameters_are_honoured(by_infer: Infer, client: Client) -> None:
    assert by_infer(PHOTO, "A close view of").text.startswith("A close view of ")
    sampled: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "length": "long", "repetition_guard": False}
    found = by_infer(PHOTO, seed=2**63 - 1, **sampled)
    assert found.text == client.caption(PHOTO, seed=2**63 - 1, **sampled).text
    assert (found.details.seed, found.details.temperature, found.details.top_p) == (2**63 - 1, 0.7, 0.95)
    words = found.text.split()
    assert by_infer(PHOTO, seed=2**63 - 1, stop=json.dumps([words[3]]), **sampled).text.split() == words[:3]


@pytest.mark.parametrize(
    ("image", "parameters", "code"),
    [
        (b"%PDF-1.7 not an image", {}, "IMAGE_FORMAT_UNKNOWN"),
        (PHOTO[:2000], {}, "IMAGE_BROKEN"),
        (b"\xff\xd8\xff" + bytes(28 * 2**20), {}, "IMAGE_TOO_LARGE"),
        (None, {}, "IMAGE_MISSING"),
        (PHOTO, {"temperature": 2.5}, "PARAMETER_INVALID"),
        (PHOTO, {"color": "red"}, "PARAMETER_UNKNOWN"),
        (PHOTO, {"style": "haiku"}, "PARAMETER_UNSUPPORTED"),
        (PHOTO, {"stream": True}, "PARAMETER_INVALID"),
        (PHOTO, {"stream": 1}, "PARAMETER_INVALID"),
        (PHOTO, {"stop": "x" * 1_000_000}, "PARAMETER_INVALID"),
    ],
)
def test_a_bad_request_is_refused_with_its_code(
    served: Served, image: bytes | None, parameters: dict[str, Any], code: str
) -> None:
    for protocol, status in (("gRPC", "StatusCode.INVALID_ARGUMENT"), ("HTTP", "400")):
        with connected(served, protocol) as (module, client), pytest.raises(InferenceServerException) as caught:
            client.infer(UNARY, inputs(module, image), parameters=parameters or None)
        assert (caught.value.status(), from_wire(caught.value.message()).code) == (status, code)
        assert caught.value.message().startswith(f"{code}: "), "Triton adds no text of its own"


def test_a_parameter_cannot_be_smuggled_past_the_table(by_infer: Infer) -> None:
    with pytest.raises(CaptionerError, match="reserved parameter"):
        by_infer(PHOTO, triton_forwarded='{"describe": true}')


def test_the_deadline_and_tritonclients_timeout_hold(by_infer: Infer) -> None:
    for number, late in enumerate(({"deadline_ms": 1}, {"timeout_us": 1000})):
        with pytest.raises(CaptionerError, match="the deadline of 1 ms passed"):
            by_infer(next(crops(seed=30 + number)) + os.urandom(8), **late)
    assert by_infer(PHOTO, timeout_us=30_000_000).details.finish_reason == "stop"


def test_sixteen_at_once_get_the_captions_that_each_gets_alone_at_the_same_time(
    served: Served, by_grpc: Infer, client: Client
) -> None:
    images = list(islice(crops(seed=1), 16))
    alone = [client.caption(image, seed=7, **LONG).text for image in images]
    with ThreadPoolExecutor(16) as threads:
        together = [threads.submit(by_grpc, image, seed=7, **LONG) for image in images]
        running = most(served, "captioner_running", while_=lambda: not all(each.done() for each in together))
    assert [each.result().text for each in together] == alone
    assert len(set(alone)) == 16
    assert running > 4, "they were captioned one after the other"


def most(served: Served, name: str, while_: Callable[[], bool]) -> float:
    """Return the largest value of a metric during a time."""
    largest = 0.0
    while while_():
        largest = max(largest, metric(served, name))
        time.sleep(0.02)
    return largest


def test_beyond_the_queue_requests_are_refused_and_all_others_are_answered(served: Served, by_grpc: Infer) -> None:
    positions = MAX_FORWARDED + 64

    def outcome(number: int) -> str:
        try:
            return "caption" if by_grpc(PHOTO, seed=number, **LONG).text else ""
        except CaptionerError as error:
            return error.wire()

    with ThreadPoolExecutor(positions + 60) as threads:
        outcomes = Counter(threads.map(outcome, range(positions + 60)))
    assert outcomes.pop("caption") >= positions
    assert len(outcomes) == 1 and "SERVER_BUSY: 24 requests are being answered and the queue of 64 is full" in str(
        outcomes
    )
    assert metric(served, UNARY_REQUESTS) == 0


def test_requests_whose_clients_have_left_hold_nothing_after_their_captions(served: Served, by_grpc: Infer) -> None:
    captions = metric(served, "captioner_captions_total")
    with connected(served, "gRPC") as (module, client):
        left = [
            client.async_infer(UNARY, inputs(module, PHOTO), lambda **_: None, parameters={"seed": seed, **LONG})
            for seed in range(MAX_FORWARDED + 60)
        ]
        assert_soon(lambda: metric(served, UNARY_REQUESTS) >= MAX_FORWARDED + 40, 20)
        for call in left:
            call.cancel()
        # Those that waited leave at once, so that others find a position.
        assert_soon(lambda: metric(served, UNARY_REQUESTS) <= MAX_FORWARDED)
    assert by_grpc(PHOTO).text
    assert_soon(lambda: metric(served, UNARY_REQUESTS) == metric(served, "captioner_running") == 0, 30)
    assert metric(served, "captioner_captions_total") - captions < len(left) - 20, "abandoned requests were captioned"


def test_metadata_and_configuration_describe_one_response(served: Served) -> None:
    with connected(served, "gRPC") as (_, client):
        config, metadata = client.get_model_config(UNARY).config, client.get_model_metadata(UNARY)
        assert not config.model_transaction_policy.decoupled
        assert client.get_model_config("captioner").config.model_transaction_policy.decoupled
    assert [tensor.name for tensor in metadata.inputs] == ["image", "prompt"]
    assert [tensor.name for tensor in metadata.outputs] == ["caption", "details"]
    assert list(metadata.versions) == ["1"]


def test_the_process_is_small(served: Served) -> None:
    """Without torch it takes a tenth of the captioner's memory."""
    children = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    stubs = [each for each in children if "caption_0_0" in each.cmdline()]
    assert stubs
    assert max(each.memory_info().rss for each in stubs) < 100 * 2**20
