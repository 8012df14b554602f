"""Load a published decoder's weights in exactly the requested precision, or refuse."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from captioner.decoders.fused_layers import fuse
from captioner.decoders.packed_linear import pack
from captioner.errors import StartupRefused

Precision = Literal["fp32", "bf16", "int8", "nf4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOAT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_weights(
    kind: type[PreTrainedModel | AutoModelForCausalLM], folder: Path, precision: Precision, device: torch.device
) -> PreTrainedModel:
    """Return `folder/decoder` as a `kind` on `device`. Raises StartupRefused if the precision is unavailable.

    Only the decoder's own linear layers are quantised: the vision tower and the projector are in the ONNX graph.
    """
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    if precision in FLOAT_DTYPES:
        model: PreTrainedModel = kind.from_pretrained(folder / "decoder", dtype=FLOAT_DTYPES[precision], **options)
        model.to(device)  # type: ignore[arg-type]  # transformers hides torch's signature
        fuse(model)
        if device.type == "cpu":
            pack(model)
        return model
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise StartupRefused(f"precision is {precision}, which needs {package}; pip install 'captioner[quantised]'")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns at every matrix product
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    # With a threshold, each product reads from the device whether there are outliers, which no CUDA graph can hold.
    threshold = 0.0 if device.type == "cuda" else 6.0  # the default of bitsandbytes
    quantised = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        if precision == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    )
    try:
        model = kind.from_pretrained(
            folder / "decoder", dtype=compute, quantization_config=quantised, device_map={"": device}, **options
        )
    except Exception as error:  # bitsandbytes and accelerate raise exceptions of many types
        raise StartupRefused(f"precision is {precision}, which {device} cannot run: {error}") from error
    fuse(model)
    return model
