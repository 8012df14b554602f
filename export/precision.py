"""The vision encoder's precision: its graph lowered to fp16 or int8, and how far its features may then be off.

A lowered graph goes by the same name, takes the same uint8 pixels and gives float32 features in the same open sizes;
the limits were set by what real photos lose, see docs/performance.md.
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


@dataclass(frozen=True)
class Difference:
    """How far features are from the original's. A cosine is of one image token with the original's; 1 is the same."""

    largest: float  # difference of one number, as a share of the largest feature
    typical: float  # the median of all tokens' cosines: the rounding
    mean: float  # cosine of a token on average, so also of words that a near-tie ranks otherwise

    def __str__(self) -> str:
        return (
            f"features differ by at most {self.largest:.1e} of the largest; a token's cosine with the original's is "
            f"{self.typical:.5f}, on average {self.mean:.4f}"
        )


# What eight photos lost of a cosine of 1 at most: the typical token 1e-5 in fp16, in int8 1e-3 (DINOv2) and 4e-3 (the
# embedded model). Means are wider, as words of nearly one rank change places: 1e-2 in fp16, 7e-2 in int8.
LIMITS: dict[EncoderPrecision, Difference] = {
    "fp32": Difference(largest=1e-4, typical=0.99999, mean=0.99999),
    "fp16": Difference(largest=inf, typical=0.9999, mean=0.98),
    "int8": Difference(largest=inf, typical=0.99, mean=0.9),
}


def compare(expected_BTD: NDArray[np.float32], found_BTD: NDArray[np.float32]) -> Difference:
    """How far features, (B, image tokens, width), are from those that were expected."""
    expected, found = expected_BTD.astype(np.float64), found_BTD.astype(np.float64)
    largest = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6)
    lengths_BT = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    cosines_BT = ((expected * found).sum(-1) + 1e-12) / (lengths_BT + 1e-12)  # two tokens of zeros are the same
    return Difference(float(largest), float(np.median(cosines_BT)), float(cosines_BT.mean()))


def check(expected_BTD: NDArray[np.float32], found_BTD: NDArray[np.float32], precision: EncoderPrecision) -> Difference:
    """What `compare` finds, or ArtefactBroken with the number, its limit and the precision to try in its place."""
    if found_BTD.shape != expected_BTD.shape:
        raise ArtefactBroken(f"the exported encoder gives {found_BTD.shape}, the original {expected_BTD.shape}")
    found, limits = compare(expected_BTD, found_BTD), LIMITS[precision]
    hint = ""
    if precision == "int8" and not has_vnni():
        hint = "; this processor has no VNNI, without which sums of int8 products overflow"
    if precision != "fp32":
        hint += f"; try {PRECISIONS[PRECISIONS.index(precision) - 1]}"
    if not found.largest <= limits.largest:
        raise ArtefactBroken(
            f"features differ by {found.largest:.1e} of the largest in {precision}; the limit is "
            f"{limits.largest:.0e}{hint}"
        )
    for which, cosine, least in (("", found.typical, limits.typical), (" on average", found.mean, limits.mean)):
        if not cosine >= least:  # so is a number that is none
            raise ArtefactBroken(
                f"a token of the features in {precision} has a cosine of {cosine:.5f}{which} with the original's; the "
                f"limit is {least:g}{hint}"
            )
    return found


def convert_precision(
    path: Path, precision: EncoderPrecision, calibration_BHWC: NDArray[np.uint8], say: Callable[[str], None]
) -> None:
    """Rewrites the exported graph at `path`, and its weights' file if it has one, in `precision`.

    `calibration_BHWC` are photos' pixels, see `calibration_pixels`; only a convolutional encoder in int8 needs them.
    Raises ModelUnsupported where the graph has nothing that the precision could change.
    """
    if precision == "fp32":
        return
    say(f"lowering the vision encoder to {precision}")
    original = onnx.load(path, load_external_data=False)
    if precision == "fp16":
        # ONNX Runtime 1.19 takes a bound that a half-precision Clip lacks for zero.
        open_ended = [node.name for node in original.graph.node if node.op_type == "Clip" and _lacks_a_bound(node)]
        model = convert_float_to_float16(str(path), keep_io_types=True, node_block_list=open_ended)
    else:
        model = quantize(path, calibration_BHWC, say)
    for file in _weight_files(original.graph, path.parent):
        file.unlink()
    _save(model, original, path)


def _lacks_a_bound(clip: onnx.NodeProto) -> bool:
    return len(clip.input) < 3 or not all(clip.input)


def _save(model: onnx.ModelProto, original: onnx.ModelProto, path: Path) -> None:
    """Writes `model` with what the exporter declared of `original`, and nothing that a tool wrote beside it."""
    del model.graph.value_info[:]  # sizes that the symbolic declarations would contradict
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    del model.graph.output[:]
    model.graph.output.extend(original.graph.output)
    ONNXModel(model).topological_sort()  # casts stand at the end
    domains = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = min(original.ir_version, MAX_IR_VERSION)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=weights > SINGLE_FILE_LIMIT_BYTES, location=f"{path.name}.data")


def _weight_files(graph: onnx.GraphProto, folder: Path) -> set[Path]:
    """The files beside the graph that hold its weights."""
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    return {folder / entry.value for entry in entries if entry.key == "location"}
