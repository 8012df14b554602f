"""The vision encoder as an ONNX graph: uint8 pixels in, features out, normalisation inside, any batch size."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from captioner import wire
from captioner.errors import ModelUnsupported
from captioner.families.base import Source

OPSET = 18  # read by every ONNX Runtime from 1.19 on
MAX_IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads
EXPORT_BATCH = 2
SINGLE_FILE_LIMIT_BYTES = 3 * 2**29  # protobuf ends at 2 GiB; above this, weights go to a second file


def export_vision_encoder(source: Source, folder: Path, metadata: dict[str, str]) -> Path:
    """Writes `folder/model.onnx` with `metadata` in it and returns its path.

    Dimensions other than the batch are declared symbolic: the native backend refuses a config of −1 in front of a
    fixed dimension. Raises ModelUnsupported when the graph is not what the wire says.
    """
    path = folder / "model.onnx"
    pixels = torch.zeros(EXPORT_BATCH, source.image.height, source.image.width, 3, dtype=torch.uint8)
    weights = sum(tensor.nbytes for tensor in source.vision_encoder.state_dict().values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter is chatty
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.vision_encoder,
            (pixels,),
            path,
            input_names=[wire.PIXELS.name],
            output_names=[wire.FEATURES.name],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=weights > SINGLE_FILE_LIMIT_BYTES,
            verbose=False,
        )
    model = onnx.load(path, load_external_data=False)
    for value, axes in (
        (model.graph.input[0], ("height", "width")),
        (model.graph.output[0], ("tokens", "feature")),
    ):
        dims = value.type.tensor_type.shape.dim
        if not dims[0].dim_param:
            raise ModelUnsupported(f"{value.name} was exported with a fixed batch of {dims[0].dim_value}")
        dims[0].dim_param = "batch"
        for dim, axis in zip(dims[1:3], axes, strict=True):
            dim.dim_param = axis
    del model.graph.value_info[:]  # sizes that the symbolic declarations would contradict
    onnx.helper.set_model_props(model, metadata)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    onnx.save(model, path)
    return path


def onnx_features(path: Path, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The exported graph's features, (B, image tokens, width) float32, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    features: NDArray[np.float32] = session.run([wire.FEATURES.name], {wire.PIXELS.name: pixels_BHWC})[0]
    return features
