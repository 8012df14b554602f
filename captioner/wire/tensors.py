"""The Triton models of a repository with their input and output tensors, and the default ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HTTP_PORT, GRPC_PORT, METRICS_PORT, PAGE_PORT = 8000, 8001, 8002, 7860
MAX_IMAGE_BYTES = 20 * 2**20
MAX_PROMPT_CHARACTERS = 32_768
ADMIN_HEADER = "captioner-admin"  # a request that carries the server's admin key here may use model control

EncoderPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a Triton model. `dims` exclude the batch dimension; −1 is any size."""

    name: str
    data_type: Literal["TYPE_STRING", "TYPE_UINT8", "TYPE_FP32"]
    dims: tuple[int, ...]
    optional: bool = False
    max_length: int | None = None  # of a text, in characters


@dataclass(frozen=True)
class ModelWire:
    """The inputs and outputs of one Triton model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


IMAGE = Tensor("image", "TYPE_STRING", (1,))  # an image file's bytes, base64 text, or a data URL
PROMPT = Tensor("prompt", "TYPE_STRING", (1,), optional=True, max_length=MAX_PROMPT_CHARACTERS)  # UTF-8, used verbatim
CAPTION = Tensor("caption", "TYPE_STRING", (1,))  # the new text since the last response
DETAILS = Tensor("details", "TYPE_STRING", (1,))  # JSON of `Details` or `ModelCard`, in the last response
PIXELS = Tensor("pixels", "TYPE_UINT8", (-1, -1, 3))  # (height, width, RGB)
IMAGE_INFO = Tensor("image_info", "TYPE_STRING", (1,))  # JSON of `ImageInfo`
FEATURES = Tensor("features", "TYPE_FP32", (-1, -1))  # (image tokens, width)

CAPTIONER = "captioner"
UNARY = "caption"  # the captioner's caption in one response, for clients that know only `infer`
PREPROCESS = "preprocess"
VISION_ENCODER = "vision_encoder"
UNARY_REQUESTS = "captioner_unary_requests"  # the metric that counts requests of UNARY that are not answered yet

_CAPTIONS = ModelWire((Tensor("image", "TYPE_STRING", (1,), optional=True), PROMPT), (CAPTION, DETAILS))
MODELS = {
    CAPTIONER: _CAPTIONS,
    UNARY: _CAPTIONS,
    PREPROCESS: ModelWire((IMAGE,), (PIXELS, IMAGE_INFO)),
    VISION_ENCODER: ModelWire((PIXELS,), (FEATURES,)),
}
