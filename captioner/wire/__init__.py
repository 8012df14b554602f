"""The wire: every tensor, request parameter and response field, with type, shape, unit, default and range.

The committed `config.pbtxt` files (a test compares them), the `model.py` files, the clients, the command line and the
page all follow it. It knows neither Triton nor any model.
"""

from captioner.wire.csv_columns import CSV_COLUMNS
from captioner.wire.parameters import (
    MAX_STOP_CHARACTERS,
    PARAMETERS,
    TEXT_LISTS,
    CaptionParameters,
    Parameter,
    encode_parameters,
    load_parameters,
    parse_parameters,
)
from captioner.wire.responses import Caption, Details, FinishReason, ImageInfo, ModelCard, Timings, to_json
from captioner.wire.tensors import (
    ADMIN_HEADER,
    CAPTION,
    CAPTIONER,
    DETAILS,
    FEATURES,
    GRPC_PORT,
    HTTP_PORT,
    IMAGE,
    IMAGE_INFO,
    MAX_IMAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
    METRICS_PORT,
    MODELS,
    PAGE_PORT,
    PIXELS,
    PREPROCESS,
    PROMPT,
    VISION_ENCODER,
    EncoderPrecision,
    Tensor,
)

__all__ = [
    "ADMIN_HEADER",
    "CAPTION",
    "CAPTIONER",
    "CSV_COLUMNS",
    "DETAILS",
    "FEATURES",
    "GRPC_PORT",
    "HTTP_PORT",
    "IMAGE",
    "IMAGE_INFO",
    "MAX_IMAGE_BYTES",
    "MAX_PROMPT_CHARACTERS",
    "MAX_STOP_CHARACTERS",
    "METRICS_PORT",
    "MODELS",
    "PAGE_PORT",
    "PARAMETERS",
    "PIXELS",
    "PREPROCESS",
    "PROMPT",
    "TEXT_LISTS",
    "VISION_ENCODER",
    "Caption",
    "CaptionParameters",
    "Details",
    "EncoderPrecision",
    "FinishReason",
    "ImageInfo",
    "ModelCard",
    "Parameter",
    "Tensor",
    "Timings",
    "encode_parameters",
    "load_parameters",
    "parse_parameters",
    "to_json",
]
