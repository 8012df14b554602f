"""A gRPC endpoint that fails as a script says and otherwise sends one fixed caption.

It needs no model, so a test of the client's retries can count attempts and measure waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from captioner import wire
from captioner.errors import ImageBroken, PromptTooLong, ServerBusy, ServerStopping
from captioner.wire import Details, FinishReason, ImageInfo, Timings
from tests.support.cards import CARD

# "unavailable", "cancelled": the gRPC status. "stalled": no response. "broken": UNAVAILABLE after BREAK_AFTER pieces.
Fault = Literal["busy", "stopping", "unavailable", "cancelled", "stalled", "refused", "long", "broken"]
PIECES, BREAK_AFTER = ("a ", "cat ", "on ", "a ", "mat"), 3
TEXT = "".join(PIECES)
ERRORS = {"busy": ServerBusy, "stopping": ServerStopping, "refused": ImageBroken, "long": PromptTooLong}
DETAILS = Details(
    model="owner/model", revision="0" * 40, version="1", prompt="", seed=0, max_tokens=9, max_characters=None,
    temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0, num_beams=1, finish_reason="stop", tokens=5,
    prompt_tokens=1, confidence=None, unsure=None, mean_logprob=-1.0,
    image=ImageInfo("PNG", 16, 16, 1, rotated=False, alpha=False), timings_ms=Timings(1, 2, 3, 4), cache_hit=False,
)  # fmt: skip


class ScriptedServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The first requests meet `faults`, one each, and all later requests meet `fault`. None is no fault."""

    def __init__(self, *faults: Fault | None, fault: Fault | None = None, port: int = 0) -> None:
        self.faults, self.fault = list(faults), fault
        self.pieces: tuple[str, ...] = PIECES
        self.piece_s = 0.0  # time before each piece
        self.details, self.card = DETAILS, CARD
        self.poison = b""  # an image that always meets "broken"
        self.finish_reasons: dict[bytes, FinishReason] = {}  # of images; "stop" for all others
        self.delays_s: dict[bytes, float] = {}  # before the caption of an image
        self.requests: list[float] = []  # times, in monotonic seconds
        self.seeds: list[int] = []
        self.languages: list[str] = []
        self.prompts: list[str] = []
        self.card = CARD
        self.ids: list[str] = []  # of requests
        self.cancelled = threading.Event()  # by a client, before the end of its caption
        self._closed = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def close(self) -> None:
        """Break the streams in progress and stop."""
        self._closed.set()
        self._server.stop(0).wait(10)

    def waits(self) -> list[float]:
        """Return the seconds between one request and the next."""
        return [later - earlier for earlier, later in zip(self.requests, self.requests[1:], strict=False)]

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Triton's streaming method."""
        (request,) = requests  # to the end: grpc.aio loses an error that arrives while it writes
        self.requests.append(time.monotonic())
        self.ids.append(request.id)
        self.seeds.append(request.parameters["seed"].int64_param)
        self.languages.append(request.parameters["language"].string_param)
        images = [deserialize_bytes_tensor(content)[0] for content in request.raw_input_contents]
        fault = "broken" if self.poison in images else self.faults.pop(0) if self.faults else self.fault
        ended = threading.Event()
        context.add_callback(lambda: None if ended.is_set() else self.cancelled.set())
        image = next(iter(images), b"")
        self.prompts.extend(text.decode() for text in images[1:2])
        self._closed.wait(self.delays_s.get(image, 0))
        details = replace(self.details, finish_reason=self.finish_reasons.get(image, "stop"))
        yield from self._respond(fault, request.parameters["describe"].bool_param, details, context)
        ended.set()

    def _respond(
        self, fault: Fault | None, describe: bool, details: Details, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        if fault in ERRORS:
            yield pb.ModelStreamInferResponse(error_message=ERRORS[fault]("of the script").wire())
            return
        if fault == "stalled":
            self._closed.wait(60)
        if fault in ("unavailable", "cancelled"):
            code = grpc.StatusCode.UNAVAILABLE if fault == "unavailable" else grpc.StatusCode.CANCELLED
            context.abort(code, "of the script")
        if describe:
            yield _response("", wire.to_json(self.card))
            return
        for number, piece in enumerate(self.pieces):
            if fault == "broken" and number == BREAK_AFTER:
                context.abort(grpc.StatusCode.UNAVAILABLE, "of the script")
            self._closed.wait(self.piece_s)
            yield _response(piece, "")
        yield _response("", wire.to_json(details))


def _response(caption: str, details: str) -> Any:
    response = pb.ModelInferResponse(model_name=wire.CAPTIONER)
    for name, text in ((wire.CAPTION.name, caption), (wire.DETAILS.name, details)):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        element = np.array([text.encode()], dtype=np.object_)
        response.raw_output_contents.append(serialize_byte_tensor(element).item())
    return pb.ModelStreamInferResponse(infer_response=response)


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    """A scripted server of the test's own."""
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared_scripted_server() -> Iterator[ScriptedServer]:
    """A scripted server for all tests of a module; each sets its script."""
    server = ScriptedServer()
    yield server
    server.close()
