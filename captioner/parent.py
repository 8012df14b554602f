"""End this process when its parent ends: a stub process must not outlive the tritonserver that started it.

The kernel's signal for that (PR_SET_PDEATHSIG) cannot be used: it fires when the thread that forked the process ends,
and Triton forks from threads that end after the load.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_POLL_SECONDS = 0.25


def end_with_parent() -> None:
    """In a stub process, start a thread that ends it at once, without cleaning up, when its parent has ended."""
    parent = os.getppid()
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    if not words[0].endswith(b"/triton_python_backend_stub"):
        return  # the model was imported by a test
    if str(parent).encode() not in words:
        os._exit(1)  # Triton names its process id in the command line, and it has already ended
    threading.Thread(target=_watch, args=(parent,), name="end-with-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
