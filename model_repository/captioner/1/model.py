"""Triton model `captioner`, the entry. It only translates between Triton and captioner.service."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from captioner import metrics, wire
from captioner.errors import CaptionerError, from_wire, typed
from captioner.features import Encoded
from captioner.served_model import CaptionRequest
from captioner.settings import Settings
from captioner.startup import load_service


class TritonPythonModel:
    """Decoupled: `execute` hands every request over and returns; answers follow from the service's own threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the published decoder onto this instance's device."""
        texts = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        settings = Settings.parse(texts, os.environ)
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self.metrics = {metric.name: metric_on_triton(metric) for metric in metrics.ALL}
        show = metrics.Changes({name: shown.increment for name, (_, shown) in self.metrics.items()}).show
        self.service = load_service(Path(args["model_repository"]), args["model_version"], gpu, settings, encode, show)

    def execute(self, requests: list[Any]) -> None:
        """image, prompt [1] and parameters → any number of caption and details [1]."""
        for request in requests:
            reply = TritonReply(request)
            try:
                self.service.handle(read(request), reply)
            except Exception as error:  # one unreadable request never silences its neighbours
                reply.fail(typed(error))

    def finalize(self) -> None:
        """Answers everyone who is still waiting, then ends."""
        self.service.close()


def read(request: Any) -> CaptionRequest:
    """Copies what is needed; Triton takes the tensors back when `execute` returns."""
    image, prompt = (first(pb_utils.get_input_tensor_by_name(request, each.name)) for each in (wire.IMAGE, wire.PROMPT))
    parameters = json.loads(request.parameters() or "{}")
    over_grpc = "user-agent" in parameters  # forwarded from gRPC's metadata only, see captioner/triton_process.py
    return CaptionRequest(image, prompt, parameters, over_grpc)


def first(tensor: Any) -> bytes | None:
    """The one element of a BYTES tensor; None where the optional input was left out."""
    return None if tensor is None else bytes(tensor.as_numpy().reshape(-1)[0])


def encode(image: bytes) -> Encoded:
    """The hop to image_encoder; blocks, and raises the refusal that preprocess answered."""
    request = pb_utils.InferenceRequest(
        model_name=wire.IMAGE_ENCODER,
        requested_output_names=[wire.FEATURES.name, wire.IMAGE_INFO.name],
        inputs=[pb_utils.Tensor(wire.IMAGE.name, np.array([[image]], dtype=np.object_))],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise from_wire(response.error().message())
    features = pb_utils.get_output_tensor_by_name(response, wire.FEATURES.name).as_numpy()[0].copy()
    info = first(pb_utils.get_output_tensor_by_name(response, wire.IMAGE_INFO.name))
    return Encoded(features, wire.ImageInfo(**json.loads(info or b"{}")))


class TritonReply:
    """captioner.sender.Reply over Triton's response sender."""

    def __init__(self, request: Any) -> None:
        self.sender = request.get_response_sender()

    def send(self, caption: str, details: str, final: bool) -> None:
        texts = {wire.CAPTION.name: caption, wire.DETAILS.name: details}
        tensors = [pb_utils.Tensor(k, np.array([v.encode()], dtype=np.object_)) for k, v in texts.items()]
        self.sender.send(
            pb_utils.InferenceResponse(tensors), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        )

    def fail(self, error: CaptionerError) -> None:
        wrapped = pb_utils.TritonError(error.wire(), getattr(pb_utils.TritonError, error.status))
        self.sender.send(pb_utils.InferenceResponse(error=wrapped), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self.sender.is_cancelled())


def metric_on_triton(metric: metrics.Metric) -> Any:
    """The metric on Triton's own /metrics, without labels: the devices' instances add up."""
    kind = getattr(pb_utils.MetricFamily, metric.kind)
    family = pb_utils.MetricFamily(name=metric.name, description=metric.doc, kind=kind)
    return family, family.Metric(labels={})  # both must live
