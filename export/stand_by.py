"""`python -m export.stand_by REPOSITORY ADDRESS`: once the server is ready, the version before is loaded as well.

Triton itself starts with the live version alone, so that nothing else can keep it from starting.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.model_control import ModelControl, admin_key
from captioner.repository import Repository
from export.rollback import Say, stand_by

_POLL_SECONDS = 1.0


def stand_by_when_ready(path: Path, address: str, say: Say, seconds: float) -> None:
    """Waits for the server up to `seconds`; says why it is left, if it is. A publish that runs loads what it needs."""
    end = time.monotonic() + seconds
    try:
        control = ModelControl(address, admin_key(path))
        while not control.is_ready():
            if time.monotonic() >= end:
                return
            time.sleep(_POLL_SECONDS)
        with Repository(path).lock() as repository:
            if len(repository.versions()) > 1:
                stand_by(repository, control)
    except CaptionerError as error:
        say(f"the version before does not stand by: {error.wire()}")


if __name__ == "__main__":
    stand_by_when_ready(Path(sys.argv[1]), sys.argv[2], print, 3600)
