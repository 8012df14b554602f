"""Triton model `preprocess`: image files to pixels. It only translates between Triton and DecoderProcess."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from captioner import wire
from captioner.artifacts.manifest import Manifest
from captioner.errors import CaptionerError, traced, typed
from captioner.image.decoder_process import DecoderProcess
from captioner.parent import end_with_parent

end_with_parent()
log = logging.getLogger(__name__)


class TritonPythonModel:
    """Answers each request of a batch separately: a refused image does not fail the others."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the decoder process for the image size of the published encoder."""
        self.decoder = DecoderProcess(Manifest.load(Path(args["model_repository"]) / args["model_version"]).image)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Turn image (B, 1) into pixels (B, height, width, 3) and image_info (B, 1)."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """End the decoder process."""
        self.decoder.close()

    def _answer(self, request: Any) -> Any:
        try:
            files = pb_utils.get_input_tensor_by_name(request, wire.IMAGE.name).as_numpy().reshape(-1)
            loaded = [self.decoder.load_pixels(file) for file in files]
        except Exception as error:
            if not isinstance(error, CaptionerError):
                log.error("an image failed: %s", traced(error))
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
