"""Run work on large inputs in a thread, so that the event loop goes on serving others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

import anyio

from frontend.client_identity import current

SMALL_BYTES = 2**16  # such input is handled faster than a thread is woken

T = TypeVar("T")

_limiters: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()  # one by client


async def off_loop(size: int, function: Callable[..., T], *arguments: object) -> T:
    """Return `function(*arguments)`, computed in a thread if its input has more than SMALL_BYTES.

    Each client has one such thread at a time: clients do not wait for each other, and threads that hold the
    interpreter lock for milliseconds do not crowd out the event loop.
    """
    if size <= SMALL_BYTES:
        return function(*arguments)
    limiter = _limiters.setdefault(current(), anyio.CapacityLimiter(1))
    return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)
