"""Wait for room in the queue of another Triton model.

Direct requests can fill the queues of `preprocess` and `vision_encoder`, and Triton 2.51 gives the requests of a model
no priority over them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from captioner.errors import ServerBusy

WAIT_SECONDS = 20
_RETRY_SECONDS = 0.005
P = ParamSpec("P")
T = TypeVar("T")


def wait_for_room(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `call` returns, repeating it while it raises ServerBusy. Raises ServerBusy after WAIT_SECONDS."""
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return call(*args, **kwargs)
        except ServerBusy:
            if time.monotonic() >= give_up:
                raise
        time.sleep(_RETRY_SECONDS)
