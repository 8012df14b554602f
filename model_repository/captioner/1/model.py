"""Triton model `captioner`, the endpoint. It only translates between Triton and captioner.serving.service."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from captioner import wire
from captioner.errors import CaptionerError, from_wire, typed
from captioner.parent import end_with_parent
from captioner.serving import metrics
from captioner.serving.feature_cache import Encoded
from captioner.serving.queue_room import wait_for_room
from captioner.serving.request import CaptionRequest
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service

end_with_parent()


class TritonPythonModel:
    """A decoupled model: `execute` passes requests on and returns; the service's own threads send the responses."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the published decoder onto this instance's device."""
        settings = Settings.of_config(args["model_config"], os.environ)
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        folder, version = Path(args["model_repository"]), args["model_version"]
        self.metrics = metrics.TritonMetrics(pb_utils.MetricFamily, version)
        self.service = load_service(folder, version, gpu, settings, partial(encode, int(version)), self.metrics.update)

    def execute(self, requests: list[Any]) -> None:
        """Answer image, prompt [1] and parameters with any number of caption and details [1]."""
        for request in requests:
            writer = TritonWriter(request)
            try:
                self.service.handle(read(request), writer)
            except Exception as error:  # an unreadable request must not fail the others
                writer.fail(typed(error))

    def finalize(self) -> None:
        """Answer all requests in flight, then stop."""
        self.service.close()
        self.metrics.close()


def read(request: Any) -> CaptionRequest:
    """Copy the inputs: Triton frees the tensors when `execute` returns."""
    parameters = wire.load_parameters(request.parameters(), request.timeout())
    image, prompt = (first(pb_utils.get_input_tensor_by_name(request, each.name)) for each in (wire.IMAGE, wire.PROMPT))
    # Triton forwards the user agent from gRPC only, see captioner/launcher/triton_process.py.
    return CaptionRequest(image, prompt, parameters, streaming="user-agent" in parameters)


def first(tensor: Any) -> bytes | None:
    """Return the one element of a BYTES tensor, or None for an optional input that is missing."""
    return None if tensor is None else bytes(tensor.as_numpy().reshape(-1)[0])


def encode(version: int, image: bytes) -> Encoded:
    """Encode an image with the encoder of the same version. Raises the error that `preprocess` answered."""
    file = pb_utils.Tensor(wire.IMAGE.name, np.array([[image]], dtype=np.object_))
    pixels, info = wait_for_room(infer, wire.PREPROCESS, version, file, [wire.PIXELS.name, wire.IMAGE_INFO.name])
    (features,) = wait_for_room(infer, wire.VISION_ENCODER, version, pixels, [wire.FEATURES.name])
    return Encoded(features.as_numpy()[0], wire.ImageInfo(**json.loads(first(info) or b"{}")))


def infer(model: str, version: int, tensor: Any, names: list[str]) -> list[Any]:
    """Return the outputs `names` of another Triton model. Blocks."""
    memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
    request = pb_utils.InferenceRequest(
        model_name=model, model_version=version, inputs=[tensor], requested_output_names=names, preferred_memory=memory
    )
    response = request.exec()
    if response.has_error():
        raise from_wire(response.error().message())
    return [pb_utils.get_output_tensor_by_name(response, name) for name in names]


class TritonWriter:
    """A captioner.serving.response_sender.ResponseWriter over Triton's response sender."""

    def __init__(self, request: Any) -> None:
        self.sender = request.get_response_sender()

    def send(self, caption: str, details: str, final: bool) -> None:
        texts = (wire.CAPTION.name, caption), (wire.DETAILS.name, details)
        tensors = [pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_)) for name, text in texts]
        self.sender.send(
            pb_utils.InferenceResponse(tensors), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        )

    def fail(self, error: CaptionerError) -> None:
        wrapped = pb_utils.TritonError(error.wire(), getattr(pb_utils.TritonError, error.status))
        self.sender.send(pb_utils.InferenceResponse(error=wrapped), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self.sender.is_cancelled())
