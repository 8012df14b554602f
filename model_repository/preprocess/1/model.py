"""Triton model `preprocess`: image files to pixels. It only translates; the work is captioner.image.decode's."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from captioner import wire
from captioner.artifacts.manifest import Manifest
from captioner.errors import CaptionerError, typed
from captioner.image.decode import load_pixels

log = logging.getLogger(__name__)


class TritonPythonModel:
    """Answers every request of a batch by itself: one refused image never spoils another."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the size of the pixels that the published encoder wants."""
        self.spec = Manifest.load(Path(args["model_repository"]) / args["model_version"]).image

    def execute(self, requests: list[Any]) -> list[Any]:
        """image (B, 1) → pixels (B, height, width, 3), image_info (B, 1)."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            files = pb_utils.get_input_tensor_by_name(request, wire.IMAGE.name).as_numpy().reshape(-1)
            loaded = [load_pixels(file, self.spec) for file in files]
        except Exception as error:
            if not isinstance(error, CaptionerError):
                log.exception("an image failed")
            refusal = typed(error)
            code = getattr(pb_utils.TritonError, refusal.status)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(refusal.wire(), code))
        infos = np.array([[wire.to_json(info)] for _, info in loaded], dtype=np.object_)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(wire.PIXELS.name, np.stack([pixels for pixels, _ in loaded])),
                pb_utils.Tensor(wire.IMAGE_INFO.name, infos),
            ]
        )
