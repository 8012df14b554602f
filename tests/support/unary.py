"""The model `caption` through plain tritonclient, by gRPC and HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from captioner.errors import from_wire
from captioner.wire import UNARY, Caption, Details


def inputs(protocol: Any, image: bytes | None, prompt: str | None = None) -> list[Any]:
    """Return the input tensors. `protocol`: tritonclient.grpc or tritonclient.http."""
    found = []
    for name, value in (("image", image), ("prompt", prompt)):
        if value is not None:
            data = value if isinstance(value, bytes) else value.encode()
            found.append(protocol.InferInput(name, [1], "BYTES"))
            found[-1].set_data_from_numpy(np.array([data], dtype=np.object_))
    return found


def infer(
    protocol: Any,
    client: Any,
    image: bytes | None,
    prompt: str | None = None,
    timeout_us: int | None = None,
    **parameters: Any,
) -> Caption:
    """Return a caption by `infer`. Raises the server's error."""
    try:
        answer = client.infer(UNARY, inputs(protocol, image, prompt), parameters=parameters or None, timeout=timeout_us)
    except InferenceServerException as error:
        raise from_wire(error.message()) from None
    text, details = (answer.as_numpy(name)[0].decode() for name in ("caption", "details"))
    return Caption(text, Details.from_json(details))
