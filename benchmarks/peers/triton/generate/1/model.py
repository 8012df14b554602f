"""`generate()` of transformers on the batches that Triton's dynamic batcher makes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from benchmarks.peers.model import Model


class TritonPythonModel:
    """Pixels in, captions out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, whose folder is in PEER_MODEL."""
        self.model = Model(Path(os.environ["PEER_MODEL"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Caption all requests as one batch."""
        pixels = [pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        texts = iter(self.model.write(torch.from_numpy(np.concatenate(pixels))))
        responses = []
        for batch in pixels:
            captions = np.array([[next(texts).encode()] for _ in batch], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("caption", captions)]))
        return responses
