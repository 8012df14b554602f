"""A model card, and a gRPC server that answers every request with one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from captioner import wire
from captioner.wire import ModelCard

REVISION = "0123456789abcdef0123456789abcdef01234567"
CARD = ModelCard(
    model="owner/model",
    revision=REVISION,
    version="1",
    license="mit",
    base_model="owner/base",
    intended_use="To try things out.",
    styles={"plain": ["short", "long"], "tags": ["short"], "free": [], "alt-text": ["short"]},
    extras={"name": "It is {name}."},
    takes_name=True,
    default_style="plain",
    default_length="long",
    max_tokens=64,
    device="cpu",
    precision="int8",
    encoder_precision="fp32",
    follows_instructions=True,
    prompts={
        "plain": {"short": "Say little.", "long": "Say much."},
        "tags": {"short": "Tags."},
        "alt-text": {"short": "Alt."},
    },
)


class CardServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers every request with `card`, which a test may replace at any time."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._server = grpc.server(ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def ModelStreamInfer(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Triton's method: one response for each request."""
        for _request in requests:
            response = pb.ModelInferResponse(model_name=wire.CAPTIONER)
            for name, text in ((wire.CAPTION.name, ""), (wire.DETAILS.name, wire.to_json(self.card))):
                response.outputs.add(name=name, datatype="BYTES", shape=[1])
                element = np.array([text.encode()], dtype=np.object_)
                response.raw_output_contents.append(serialize_byte_tensor(element).item())
            yield pb.ModelStreamInferResponse(infer_response=response)

    def close(self) -> None:
        """Stop the server."""
        self._server.stop(0).wait()
