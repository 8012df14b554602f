"""Convert the vision encoder's graph to fp16 or int8, and check its features against the original's.

The converted graph replaces the file and keeps its interface: uint8 pixels in, float32 features out, symbolic sizes.
The limits come from measurements on real photos, see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from captioner.errors import ArtefactBroken
from captioner.machine import has_vnni
from captioner.wire import EncoderPrecision
from export.onnx_export import MAX_IR_VERSION, SINGLE_FILE_LIMIT_BYTES
from export.quantize_int8 import quantize

PRECISIONS: tuple[EncoderPrecision, ...] = get_args(EncoderPrecision)

Log = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """How far features are from the original's. Cosines compare an image token with the original's; 1 is equal."""

    largest: float  # largest absolute difference, relative to the largest absolute feature
    typical: float  # median cosine over all tokens: the effect of rounding
    mean: float  # mean cosine over all tokens: also counts concept words that a near-tie ranks differently

    def __str__(self) -> str:
        return (
            f"features differ by at most {self.largest:.1e} of the largest; the cosine of a token with the original's "
            f"is {self.typical:.5f} (median), {self.mean:.4f} (mean)"
        )


# Measured on eight photos, 1 minus the cosine is at most: median 1e-5 in fp16; in int8 1e-3 (DINOv2) and 4e-3 (the
# embedded model). The mean needs wider limits, because words of nearly equal rank change places: 1e-2 in fp16, 7e-2 in
# int8.
LIMITS: dict[EncoderPrecision, Difference] = {
    "fp32": Difference(largest=1e-4, typical=0.99999, mean=0.99999),
    "fp16": Difference(largest=inf, typical=0.9999, mean=0.98),
    "int8": Difference(largest=inf, typical=0.99, mean=0.9),
}


def compare(expected_BTD: NDArray[np.float32], found_BTD: NDArray[np.float32]) -> Difference:
    """Return how far the features `found_BTD`, (B, image tokens, width), are from the expected ones."""
    expected, found = expected_BTD.astype(np.float64), found_BTD.astype(np.float64)
    largest = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6)
    lengths_BT = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    cosines_BT = ((expected * found).sum(-1) + 1e-12) / (lengths_BT + 1e-12)  # 1 for two tokens of zeros
    return Difference(float(largest), float(np.median(cosines_BT)), float(cosines_BT.mean()))


def check(expected_BTD: NDArray[np.float32], found_BTD: NDArray[np.float32], precision: EncoderPrecision) -> Difference:
    """Return the result of `compare`.

    Raises ArtefactBroken with the number, its limit and the precision to try instead.
    """
    if found_BTD.shape != expected_BTD.shape:
        raise ArtefactBroken(
            f"the exported encoder gives features of shape {found_BTD.shape}; the original's have {expected_BTD.shape}"
        )
    found, limits = compare(expected_BTD, found_BTD), LIMITS[precision]
    hint = ""
    if precision == "int8" and not has_vnni():
        hint = "; this CPU does not have VNNI, and without it sums of int8 products overflow"
    if precision != "fp32":
        hint += f"; try {PRECISIONS[PRECISIONS.index(precision) - 1]}"
    if not found.largest <= limits.largest:
        raise ArtefactBroken(
            f"features differ by {found.largest:.1e} of the largest in {precision}; the limit is "
            f"{limits.largest:.0e}{hint}"
        )
    for statistic, cosine, limit in (("median", found.typical, limits.typical), ("mean", found.mean, limits.mean)):
        if not cosine >= limit:  # written so that NaN fails
            raise ArtefactBroken(
                f"in {precision} the {statistic} cosine of a token with the original's is {cosine:.5f}; the limit is "
                f"{limit:g}{hint}"
            )
    return found


def convert_precision(path: Path, precision: EncoderPrecision, calibration_BHWC: NDArray[np.uint8], log: Log) -> None:
    """Convert the exported graph at `path`, and its file of weights if it has one, to `precision`, in place.

    `calibration_BHWC`: pixels from `calibration_pixels`; only a convolutional encoder in int8 uses them. Raises
    ModelUnsupported for int8 if the graph has no weights to quantize.
    """
    if precision == "fp32":
        return
    log(f"converting the vision encoder to {precision}")
    original = onnx.load(path, load_external_data=False)
    if precision == "fp16":
        # ONNX Runtime 1.19 treats a missing bound of a half-precision Clip as zero, so such nodes stay in fp32.
        one_sided = [node.name for node in original.graph.node if node.op_type == "Clip" and _lacks_a_bound(node)]
        model = convert_float_to_float16(str(path), keep_io_types=True, node_block_list=one_sided)
    else:
        model = quantize(path, calibration_BHWC, log)
    for file in _weight_files(original.graph, path.parent):
        file.unlink()
    _save(model, original, path)


def _lacks_a_bound(clip: onnx.NodeProto) -> bool:
    return len(clip.input) < 3 or not all(clip.input)


def _save(model: onnx.ModelProto, original: onnx.ModelProto, path: Path) -> None:
    """Write `model` with the outputs and metadata of `original`, without what the conversion tools added."""
    del model.graph.value_info[:]  # it holds fixed sizes, which contradict the symbolic ones
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    del model.graph.output[:]
    model.graph.output.extend(original.graph.output)
    ONNXModel(model).topological_sort()  # the converter appends casts at the end
    domains = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = min(original.ir_version, MAX_IR_VERSION)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=weights > SINGLE_FILE_LIMIT_BYTES, location=f"{path.name}.data")


def _weight_files(graph: onnx.GraphProto, folder: Path) -> set[Path]:
    """Return the files beside the graph that hold its weights."""
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    return {folder / entry.value for entry in entries if entry.key == "location"}
