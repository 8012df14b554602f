"""A published model in this process, without Triton: image bytes in, captions out.

It is what `model_repository/` does in four models: the image's pixels, the vision encoder by ONNX Runtime, then the
decoder's own service, which batches whatever is asked at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner import wire
from captioner.client import Caption
from captioner.errors import CaptionerError
from captioner.features import Encoded
from captioner.image import load_pixels
from captioner.manifest import Manifest
from captioner.repository import Repository
from captioner.served_model import CaptionRequest
from captioner.settings import Settings
from captioner.startup import load_service

SPINNING = "session.intra_op.allow_spinning"  # threads that spin after a run take the decoder's cores


class InWorker:
    """The newest version of `repository`; on a GPU where torch sees one. Raises ArtefactBroken or StartupRefused.

    `in_flight` captions may be asked for at once, `threads` are the encoder's.
    """

    def __init__(self, repository: Path, in_flight: int, threads: int) -> None:
        version = str(Repository(repository).live())
        self._image = Manifest.load(repository / wire.CAPTIONER / version).image
        gpu = 0 if torch.cuda.is_available() else None
        encoder = repository / wire.VISION_ENCODER / version / "model.onnx"
        self._session = _session(encoder, gpu is not None, threads)
        settings = _settings(repository / wire.CAPTIONER / "config.pbtxt", in_flight)
        folder = repository / wire.CAPTIONER
        self._service = load_service(folder, version, gpu, settings, self._encode, lambda _: None)

    def submit(self, image: bytes, parameters: Mapping[str, object]) -> Future[Caption]:
        """The caption to come; `parameters` are those of Client.caption. It raises what a server would refuse."""
        values = wire.sent(parameters) | {"stream": False}
        prompt = values.pop("prompt", None)
        reply = _Reply()
        request = CaptionRequest(image, None if prompt is None else str(prompt).encode(), values, streaming=False)
        self._service.handle(request, reply)
        return reply.caption

    def caption(self, image: bytes, parameters: Mapping[str, object]) -> Caption:
        """The caption, waited for."""
        return self.submit(image, parameters).result()

    def close(self) -> None:
        """Ends once everything asked for is answered."""
        self._service.close()

    def _encode(self, image: bytes) -> Encoded:
        pixels, info = load_pixels(image, self._image)
        (features,) = self._session.run([wire.FEATURES.name], {wire.PIXELS.name: pixels[np.newaxis]})
        return Encoded(features[0], info)


class _Reply:
    """captioner.sender.Reply into a future."""

    def __init__(self) -> None:
        self.caption: Future[Caption] = Future()

    def send(self, caption: str, details: str, final: bool) -> None:
        if final:  # what is not streamed comes whole
            self.caption.set_result(Caption(caption, wire.Details.from_json(details)))

    def fail(self, error: CaptionerError) -> None:
        self.caption.set_exception(error)

    def is_cancelled(self) -> bool:
        return False


def _settings(config: Path, in_flight: int) -> Settings:
    """The operator's, as Triton hands them to the captioner, with a place for every request."""
    texts = {}
    if config.is_file():
        parsed = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
        texts = {name: parameter.string_value for name, parameter in parsed.parameters.items()}
    waiting = max(in_flight, Settings.parse(texts, os.environ).max_waiting)
    return Settings.parse(texts | {"max_waiting": str(waiting)}, {**os.environ, "CAPTIONER_MAX_WAITING": ""})


def _session(path: Path, gpu: bool, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(SPINNING, "0")
    providers = ["CPUExecutionProvider"]
    if gpu and "CUDAExecutionProvider" in ort.get_available_providers():
        ort.preload_dlls()  # CUDA and cuDNN as pip packages, where torch brought them
        providers.insert(0, "CUDAExecutionProvider")
    return ort.InferenceSession(path, options, providers)
