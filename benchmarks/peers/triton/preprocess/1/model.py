"""Decode image files and run the processor of the model, whose folder is in PEER_MODEL."""

import io
import os
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from PIL import Image

from benchmarks.peers.model import preprocessing


class TritonPythonModel:
    """Files in, pixels out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the processor."""
        self.preprocess = preprocessing(Path(os.environ["PEER_MODEL"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Read the images of each request."""
        responses = []
        for request in requests:
            files = pb_utils.get_input_tensor_by_name(request, "file").as_numpy()[:, 0]
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
            pixels = self.preprocess(images).float().numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)]))
        return responses
