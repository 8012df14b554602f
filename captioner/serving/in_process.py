"""A published model in this process, without Triton: image bytes in, captions out.

It does what the three models of `model_repository/` do: decode the image, run the vision encoder with ONNX Runtime,
then batch the captions in a CaptionService.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner import wire
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.onnx_session import best_provider, open_session
from captioner.artifacts.version_store import VersionStore
from captioner.errors import CaptionerError
from captioner.image.decoder_process import DecoderProcess
from captioner.machine import usable_cores
from captioner.serving.feature_cache import Encoded
from captioner.serving.request import CaptionRequest
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service
from captioner.wire import Caption


class InProcessModel:
    """The live version of `repository`, on a GPU if torch sees one. Raises ArtefactBroken or StartupRefused.

    `in_flight`: how many captions may be requested at the same time. `threads`: the encoder's, 0 for one a core.
    """

    def __init__(self, repository: Path, in_flight: int, threads: int = 0) -> None:
        version = str(VersionStore(repository).live())
        image = Manifest.load(repository / wire.CAPTIONER / version).image
        gpu = 0 if torch.cuda.is_available() else None
        encoder = repository / wire.VISION_ENCODER / version / "model.onnx"
        self._session = open_session(encoder, provider=best_provider(gpu is not None), threads=threads)
        self._decoders: SimpleQueue[DecoderProcess] = SimpleQueue()  # those that are free
        for _ in range(threads or usable_cores()):
            self._decoders.put(DecoderProcess(image))
        settings = _settings(repository / wire.CAPTIONER / "config.pbtxt", in_flight)
        folder = repository / wire.CAPTIONER
        self._service = load_service(folder, version, gpu, settings, self._encode, lambda _: None)

    def submit(self, image: bytes, parameters: Mapping[str, object]) -> Future[Caption]:
        """Return a caption's future; `parameters` are those of Client.caption. The future raises a server's errors."""
        values = wire.encode_parameters(parameters) | {"stream": False}
        prompt = values.pop("prompt", None)
        writer = _FutureWriter()
        request = CaptionRequest(image, None if prompt is None else str(prompt).encode(), values, streaming=False)
        self._service.handle(request, writer)
        return writer.caption

    def caption(self, image: bytes, parameters: Mapping[str, object]) -> Caption:
        """Return the caption; blocks."""
        return self.submit(image, parameters).result()

    def close(self) -> None:
        """Answer every request, then stop."""
        self._service.close()
        while not self._decoders.empty():
            self._decoders.get().close()

    def _encode(self, image: bytes) -> Encoded:
        decoder = self._decoders.get()
        try:
            pixels, info = decoder.load_pixels(image)
        finally:
            self._decoders.put(decoder)
        (features,) = self._session.run([wire.FEATURES.name], {wire.PIXELS.name: pixels[np.newaxis]})
        return Encoded(features[0], info)


class _FutureWriter:
    """A captioner.serving.response_sender.ResponseWriter that sets a future."""

    def __init__(self) -> None:
        self.caption: Future[Caption] = Future()
        self.caption.set_running_or_notify_cancel()  # it can no longer be cancelled, so `send` and `fail` never raise

    def send(self, caption: str, details: str, final: bool) -> None:
        if final:  # without streaming it is the only response
            self.caption.set_result(Caption(caption, wire.Details.from_json(details)))

    def fail(self, error: CaptionerError) -> None:
        self.caption.set_exception(error)

    def is_cancelled(self) -> bool:
        return False


def _settings(config: Path, in_flight: int) -> Settings:
    """Return the operator's settings, with a queue long enough for `in_flight` requests."""
    texts = {}
    if config.is_file():
        parsed = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
        texts = {name: parameter.string_value for name, parameter in parsed.parameters.items()}
    waiting = max(in_flight, Settings.parse(texts, os.environ).max_waiting)
    return Settings.parse(texts | {"max_waiting": str(waiting)}, {**os.environ, "CAPTIONER_MAX_WAITING": ""})
