"""Export the vision encoder to ONNX: uint8 pixels in, features out, normalization inside, any batch size.

For a tiled model, the number of tiles is dynamic too; for one of dynamic size, the rows and columns of tokens are.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from captioner import wire
from captioner.artifacts.onnx_session import open_session
from captioner.errors import ModelUnsupported
from captioner.families.base import Source

OPSET = 18  # supported by ONNX Runtime 1.19 and newer
MAX_IR_VERSION = 10  # the newest that ONNX Runtime 1.19 supports
EXPORT_BATCH, EXPORT_TILES, EXPORT_GRID = 2, 3, (3, 5)
SINGLE_FILE_LIMIT_BYTES = 3 * 2**29  # protobuf is limited to 2 GiB; larger weights go to a second file


def export_vision_encoder(source: Source, folder: Path, metadata: dict[str, str]) -> Path:
    """Write `folder/model.onnx` with `metadata` as its properties; return its path.

    Raises ModelUnsupported when the exported batch size is fixed.
    """
    path = folder / "model.onnx"
    image, dynamic_axes = source.image, {0: torch.export.Dim("batch", min=1, max=1024)}
    height, width = image.height, image.width
    if image.longest_px is not None:
        dynamic_axes[1] = height * torch.export.Dim("tiles", min=1, max=1024)
        height *= EXPORT_TILES
    elif image.max_pixels is not None:
        dynamic_axes[1] = height * torch.export.Dim("rows", min=1, max=image.max_grid[1])
        dynamic_axes[2] = width * torch.export.Dim("columns", min=1, max=image.max_grid[1])
        height, width = image.pixel_size(*EXPORT_GRID)
    pixels = torch.zeros(EXPORT_BATCH, height, width, 3, dtype=torch.uint8)
    weights = sum(tensor.nbytes for tensor in source.vision_encoder.state_dict().values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints and warns a lot
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.vision_encoder,
            (pixels,),
            path,
            input_names=[wire.PIXELS.name],
            output_names=[wire.FEATURES.name],
            dynamic_shapes=(dynamic_axes,),
            opset_version=OPSET,
            dynamo=True,
            external_data=weights > SINGLE_FILE_LIMIT_BYTES,
            verbose=False,
        )
    model = onnx.load(path, load_external_data=False)
    _make_sizes_symbolic(model.graph)
    onnx.helper.set_model_props(model, metadata)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    onnx.save(model, path)
    return path


def _make_sizes_symbolic(graph: onnx.GraphProto) -> None:
    """Make every dimension of the input and the output symbolic, because one config.pbtxt serves every version.

    For the input, the declaration is enough. For the output, ONNX Runtime would infer the fixed sizes again. So the
    features pass through a slice that keeps all of them, but whose ends are only known at run time.
    """
    for value, axes in ((graph.input[0], ("height", "width")), (graph.output[0], ("tokens", "feature"))):
        dims = value.type.tensor_type.shape.dim
        if not dims[0].dim_param:
            raise ModelUnsupported(f"{value.name} was exported with a fixed batch of {dims[0].dim_value}")
        dims[0].dim_param = "batch"
        for dim, axis in zip(dims[1:3], axes, strict=True):
            dim.dim_param = axis
    del graph.value_info[:]  # it holds fixed sizes, which contradict the symbolic ones
    inner = "features_of_fixed_size"
    for node in graph.node:
        node.input[:] = [inner if name == wire.FEATURES.name else name for name in node.input]
        node.output[:] = [inner if name == wire.FEATURES.name else name for name in node.output]
    constants = {"slice_starts": [0, 0], "slice_axes": [1, 2], "slice_reach": [2**20, 2**20]}
    graph.initializer.extend(
        onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [2], values) for name, values in constants.items()
    )
    graph.node.extend(
        [
            onnx.helper.make_node("Shape", [wire.PIXELS.name], ["image_size"], start=1, end=3),
            onnx.helper.make_node("Mul", ["image_size", "slice_reach"], ["slice_ends"]),
            onnx.helper.make_node("Slice", [inner, "slice_starts", "slice_ends", "slice_axes"], [wire.FEATURES.name]),
        ]
    )


def onnx_features(path: Path, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the exported graph on the CPU; return features (B, image tokens, width) float32."""
    features: NDArray[np.float32] = open_session(path).run([wire.FEATURES.name], {wire.PIXELS.name: pixels_BHWC})[0]
    return features
